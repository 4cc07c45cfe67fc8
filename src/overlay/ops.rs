//! The operations, by family. Each copies what it needs, submits the work and says what becomes of the result.

pub mod access;
pub mod attributes;
pub mod data;
pub mod directories;
mod hidden;
mod nameless;
pub mod names;
pub mod xattr;
