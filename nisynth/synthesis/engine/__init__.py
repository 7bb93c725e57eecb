"""The compiled loop: the plain loop's mathematics at the speed of the machine."""
