"""The style picker: `gallery()` shows every style at once, `studio()` paints what is chosen, or one's own photo."""

import ipywidgets as widgets
from IPython.display import Image as ShownImage
from IPython.display import display

from styleforge_lib.lab.compare import compare
from styleforge_lib.lab.figures import draw_pictures
from styleforge_lib.lab.photos import NAMES, photo
from styleforge_lib.models.checkpoints import list_styles
from styleforge_lib.painter import stylize
from styleforge_lib.pictures import PictureError, load_bytes, on_white

LONGEST = 512  # pixels: a CPU paints such a picture in about a second


def gallery(photos: tuple[str, ...] = ("astronaut", "chelsea"), *, size: int = 320) -> ShownImage:
    """Draw each photo beside its painting in every shipped style, ``size`` pixels along the long side."""
    rows = [[photo(name), *(stylize(photo(name), style, size=size) for style in list_styles())] for name in photos]
    return draw_pictures(rows, titles=["photo", *list_styles()])


def studio() -> None:
    """Display the choosers and the painting; it repaints whenever a choice changes."""
    which = widgets.Dropdown(options=NAMES, value="chelsea", description="Photo")
    style = widgets.Dropdown(options=list_styles(), description="Style")
    own = widgets.FileUpload(accept="image/*", multiple=False, description="Your own photo")
    easel = widgets.Output()
    subject = {"picture": photo(which.value), "name": which.value}

    def paint() -> None:
        easel.clear_output(wait=True)
        with easel:
            picture = subject["picture"].copy()
            picture.thumbnail((LONGEST, LONGEST))
            display(compare(picture, stylize(picture, style.value), labels=(subject["name"], style.value)))

    def choose_sample(change: dict) -> None:
        subject.update(picture=photo(change["new"]), name=change["new"])
        paint()

    def choose_own(change: dict) -> None:
        if not change["new"]:
            return
        try:
            subject.update(_uploaded(change["new"]))
        except PictureError as error:
            easel.clear_output()
            with easel:
                print(error)
            return
        paint()

    which.observe(choose_sample, "value")
    style.observe(lambda _: paint(), "value")
    own.observe(choose_own, "value")
    display(widgets.VBox([widgets.HBox([which, style, own]), easel]))
    paint()


def _uploaded(value: dict | tuple) -> dict[str, object]:
    """Return the name and the RGB picture of an upload: a dict in ipywidgets 7 (Colab), a tuple of dicts in 8."""
    if isinstance(value, dict):
        ((name, upload),) = value.items()
    else:
        upload = value[0]
        name = upload["name"]
    return {"name": name, "picture": on_white(load_bytes(upload["content"], name))}
