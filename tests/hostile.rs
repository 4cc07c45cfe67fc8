//! Everybody who is not to be trusted, as docs/threat-model.md names them: the server, the names on a good store, other
//! users of this machine, and what is given with options.
#![allow(clippy::unwrap_used)]

mod lab;

#[path = "hostile/answers.rs"]
mod answers;
#[path = "hostile/injection.rs"]
mod injection;
#[path = "hostile/names.rs"]
mod names;
#[path = "hostile/places.rs"]
mod places;
#[path = "hostile/rig.rs"]
mod rig;
#[path = "hostile/secrets.rs"]
mod secrets;
#[path = "hostile/server.rs"]
mod server;
#[path = "hostile/socket.rs"]
mod socket;
#[path = "hostile/user.rs"]
mod user;

lab::also_runs_as!(server_process: server::main);
lab::also_runs_as!(relay_process: lab::relay::main);
