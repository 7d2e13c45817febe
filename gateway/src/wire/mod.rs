//! Bytes to orders, outcomes to bytes. Nothing here knows a socket, a table or a link.

mod amount; // positive decimals of a currency
pub(crate) mod audit_orders; // the auditors' requests
pub(crate) mod body; // one JSON body of bounded size
pub(crate) mod key_orders; // the key officers' requests
mod object; // a JSON object, read strictly
pub(crate) mod orders; // the data API's requests
pub mod problem; // refusals
pub(crate) mod queue_orders; // the operators' requests about the queue
pub(crate) mod reason; // why an officer or an operator does something

pub use amount::Amount;
