"""A discrete-event simulation of many workers on one queue, with the packing and splitting of mtask itself."""
