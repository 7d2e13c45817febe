//! System tests: one binary, one file a story. Each test has a world of its own.
#![expect(clippy::unwrap_used, reason = "a helper of a test fails as the test does")]

mod support; // what several stories share

mod smoke;
mod payments;
mod store_and_forward;
mod backend_faults;
mod worker_faults;
mod gateway_kill;
mod second_gateway;
mod start_without;
