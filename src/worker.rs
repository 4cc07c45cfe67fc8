//! Tells the worker to pause and to go on (promise P7).
