//! Whether each audit sink is reached: its files, then a connection and a handshake.

use super::files::set;
use super::{Row, row};
use crate::config::{Config, SinkConfig};
use crate::siem;

/// A row for each sink. They are tried at the same time: one that hangs costs its own limit.
pub(super) async fn look(config: &Config, rows: &mut Vec<Row>) {
    let visits: Vec<_> =
        config.audit.sink.iter().cloned().map(|sink| tokio::spawn(visit(sink))).collect();
    for visited in visits {
        let outcome = visited.await.unwrap_or_else(|panic| Err(panic.to_string()));
        rows.push(row("audit sink", outcome));
    }
}

async fn visit(sink: SinkConfig) -> Result<String, String> {
    let whose = format!("sink {:?}", sink.name);
    let files = set(&whose, &sink.ca, &sink.certificate, &sink.key)?;
    siem::try_out(&sink).await.map_err(|why| format!("{whose}: {}: {why}", sink.address))?;
    Ok(format!("{files}, {} answers, {}", sink.address, sink.format))
}
