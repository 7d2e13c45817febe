//! One connection through the proxy: two pumps, of which each can end both.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Behaviour, End, Passage, Shared, Side, Way, lock, reset};

/// Carries bytes both ways until an end, a trap, or `cut`.
pub(super) async fn run(
    mut client: TcpStream,
    behaviour: watch::Receiver<Behaviour>,
    shared: Arc<Shared>,
    cut: CancellationToken,
) {
    let id = shared.next.fetch_add(1, Relaxed);
    lock(&shared.open).insert(id, cut.clone());
    let ended = cut.run_until_cancelled(converse(&mut client, behaviour, &shared, id)).await;
    shared.forget(id);
    if ended != Some(End::Close) {
        reset(&client);
    }
}

async fn converse(
    client: &mut TcpStream,
    behaviour: watch::Receiver<Behaviour>,
    shared: &Shared,
    id: u64,
) -> End {
    let Ok(mut upstream) = TcpStream::connect(shared.upstream).await else { return End::Reset };
    // Best effort: without it pieces are only later.
    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
    let end = {
        let (client_in, client_out) = client.split();
        let (upstream_in, upstream_out) = upstream.split();
        let pump = |side| Pump { side, id, shared, behaviour: behaviour.clone() };
        tokio::try_join!(
            pump(Side::Request).run(client_in, upstream_out),
            pump(Side::Answer).run(upstream_in, client_out),
        )
    };
    match end {
        Err(End::Reset) => {
            reset(&upstream);
            End::Reset
        }
        Err(End::Close) => {
            let both = async { tokio::join!(close(client), close(&mut upstream)) };
            // A peer that does not follow is left.
            let _ = timeout(FOLLOWS_WITHIN, both).await;
            End::Close
        }
        Ok(_) => End::Close,
    }
}

/// Says FIN, and reads to the peer's: the system would say RST for what is unread.
async fn close(socket: &mut TcpStream) {
    let _ = socket.shutdown().await;
    let _ = tokio::io::copy(socket, &mut tokio::io::sink()).await;
}

struct Pump<'s> {
    side: Side,
    id: u64,
    shared: &'s Shared,
    behaviour: watch::Receiver<Behaviour>,
}

impl Pump<'_> {
    /// To the end of what `from` says, which is said on; or to the end of both directions.
    async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), End> {
        let mut piece = vec![0; PIECE_BYTES];
        let mut is_lost = false;
        loop {
            let count = from.read(&mut piece).await.map_err(|_| End::Reset)?;
            let way = self.passed().await;
            is_lost |= way.passage == Passage::Lost;
            if count == 0 {
                if !is_lost {
                    let _ = to.shutdown().await;
                }
                return Ok(());
            }
            let (passing, end) = self.shared.spring(self.id, self.side, count);
            let wait = self.shared.wait_of(&way);
            if !wait.is_zero() {
                sleep(wait).await;
            }
            if !is_lost {
                to.write_all(&piece[..passing]).await.map_err(|_| End::Reset)?;
            }
            if let Some(end) = end {
                return Err(end);
            }
            if let Some(limit) = way.bytes_per_s {
                sleep(Duration::from_secs_f64(count as f64 / limit.max(1) as f64)).await;
            }
        }
    }

    /// How this way is, once it is not held.
    async fn passed(&mut self) -> Way {
        loop {
            let now = *self.behaviour.borrow_and_update();
            let way = match self.side {
                Side::Request => now.to_upstream,
                Side::Answer => now.to_client,
            };
            if way.passage != Passage::Held {
                return way;
            }
            if self.behaviour.changed().await.is_err() {
                return Way { passage: Passage::Lost, ..way };
            }
        }
    }
}

const PIECE_BYTES: usize = 16 * 1024;
const FOLLOWS_WITHIN: Duration = Duration::from_secs(1);
