//! Stub, written in the next commit.
