"""The order of a training's images, exact resume, health reports and averaged weights."""
