//! System tests: one binary, one file a story. Each test has a world of its own.
#![cfg(test)]

mod audit;
mod audit_trail;
mod backend_bytes;
mod backend_faults;
mod bad_requests;
mod behind_shim;
mod biller_urls; // several doors to one ledger
mod breakers; // the hand of an operator
mod canary; // finds a secret in any form
mod check_links; // before a start
mod deadlines;
mod dukpt;
mod evidence; // what an assessor is given
mod gateway_kill;
mod kek_rotation; // under load
mod key_blocks; // what comes in a key block, and what does not
mod key_life; // staged, active, retired, compromised; several workers; a kill
mod key_officers; // two persons, one change
mod key_rollout; // one change, two links
mod kills;
mod lock_down;
mod modes;
mod openapi_admin;
mod opencryptoki; // another token; by `make test-opencryptoki` alone
mod payments;
mod pin_blocks;
mod pin_verify;
mod postgres; // a server that crashes, is away, takes no writes
mod queue_desk; // operators at the queue
mod random_operations;
mod redaction;
mod return_codes;
mod rollback; // an old backup
mod second_gateway;
mod siem; // a syslog server that is not ours
mod smoke;
mod start_without;
mod store_and_forward;
mod store_faults; // a full disk, another file
mod support; // what several stories share
mod terminal; // what a DUKPT terminal sends
mod tls;
mod two_gateways; // one database, one biller
mod two_links; // two tokens, the same keys
mod unheard;
mod unknown_outcomes; // billers that may not be sent a payment twice // clients that do not wait
mod vector_keys; // the keys of the known-answer vectors, as a token has them
mod vectors_api;
mod vectors_dukpt;
mod vectors_token;
mod vectors_verify;
mod wanted; // what a world has beside the demo's
mod worker_faults;
mod worker_orders;
