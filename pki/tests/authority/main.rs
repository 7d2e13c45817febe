//! The authority seen from outside: what its files hold, whom rustls lets in, what the program says.
#![cfg(test)]

mod certificates;
mod handshake;
mod program;
