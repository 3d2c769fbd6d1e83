"""The old address of `utils.data.images`, kept for people's scripts; nothing here uses it."""

from utils.data.images import *  # noqa: F403
from utils.data.listing import find_images  # noqa: F401
