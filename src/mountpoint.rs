//! The directory that an overlay is mounted on: found and checked without touching a mount that may hang ([`place`]), claimed by
//! one steadfs at a time ([`claim`]), and freed of what a steadfs that was killed left there ([`dead`], [`sweep`]).

pub mod claim;
pub mod dead;
pub mod place;
pub mod sweep;
