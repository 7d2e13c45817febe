//! Logs: one JSON object a line on stderr. A panic leaves its place there and nothing of its text,
//! because the text may quote what was being worked on.

use tracing_subscriber::{EnvFilter, filter::ParseError, util::TryInitError};

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each error text is the documentation")]
pub enum LogError {
    #[error("{FILTER_VARIABLE} or the default filter is not a list of target=level")]
    Filter(#[from] ParseError),
    #[error("logging was started twice")]
    Twice(#[from] TryInitError),
}

/// Starts logging. `TOLLGATE_LOG` holds the filter (`info,gateway::edge=debug`), else `default`
/// does. Call once, first thing.
///
/// # Errors
/// A filter that cannot be read, or a second call.
pub fn install(default: &str) -> Result<(), LogError> {
    use tracing_subscriber::util::SubscriberInitExt as _;

    let text = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| default.to_owned());
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::try_new(text)?)
        .finish()
        .try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic");
    }));
    Ok(())
}

const FILTER_VARIABLE: &str = "TOLLGATE_LOG";
