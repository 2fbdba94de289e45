"""What the rows of the tests of readers are made of."""

import PIL.Image

from chatwright.data.records import Message, Part

RED = Part.of_image(PIL.Image.new("RGB", (4, 4), "red"))
BLUE = Part.of_image(PIL.Image.new("RGB", (4, 4), "blue"))
ASK = {"role": "user", "content": "What is this?"}
SAY = {"role": "assistant", "content": "A cat."}
TURNS = (Message.of("user", "What is this?"), Message.of("assistant", "A cat."))
