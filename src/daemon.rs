//! Wires one mount together and runs it until it is unmounted.
