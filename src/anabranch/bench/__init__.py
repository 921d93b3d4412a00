"""Measuring this library by itself: `anabranch bench step | generate | train | scale`."""
