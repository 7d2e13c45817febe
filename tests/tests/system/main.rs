//! System tests: one binary, one file a story. Each test has a world of its own.
#![cfg(test)]

mod wanted; // what a world has beside the demo's
mod canary; // finds a secret in any form
mod vector_keys; // the keys of the known-answer vectors, as a token has them

mod smoke;
mod vectors_token;
mod vectors_api;
mod pin_blocks;
mod bad_requests;
mod tls;
mod audit;
mod openapi_admin;
