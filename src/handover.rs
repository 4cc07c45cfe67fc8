//! What outlives the daemon (promise P6): the memory that a successor starts from.
//!
//! The daemon notes everything that the kernel and callers may rely on in a piece of memory whose descriptor somebody
//! else holds too. kill -9 at any instruction leaves all that was noted; the next daemon maps the same memory, folds what
//! it finds into a [`Picture`] and goes on.
//!
//! ```text
//!   overlay ── note(item) ──▶ tape ──┐                       ┌── Picture ──▶ nodes, handles, write logs
//!   readers ── enter, leave ▶ slots ─┼─ memfd ─ take_over() ─┼── requests in flight, by unique
//!   daemon ─── beat ────────▶ pulse ─┘                       └── (read by the watchdog)
//! ```
//!
//! [`Memory`] is all that its owner needs. Nothing in here does I/O or knows of FUSE files: [`arena`] is the memory,
//! [`tape`] and [`slots`] are what is in it, [`item`] says what may be noted and [`picture`] what that comes to.

pub mod arena;
mod crash;
pub mod event;
pub mod item;
pub mod memory;
mod notes;
pub mod picture;
pub mod pulse;
pub mod slots;
pub mod tape;

pub use arena::Sizes;
pub use item::{Item, LogEvent};
pub use memory::{HandoverError, Inherited, Memory};
pub use notes::Notes;
pub use picture::{Grant, Picture};
