"""Random changes of training patches, on the device, inside the compiled step."""
