//! What operators see: figures and logs. Knows facts and counters, never the body of a request.

pub mod metrics; // every metric name in one table
pub mod logs; // JSON lines on stderr
