//! Each behaviour over real sockets, against an upstream that echoes.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::*;

const SOON: Duration = Duration::from_secs(5);
/// Longer than loopback takes, by far.
const NEVER: Duration = Duration::from_millis(250);

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = socket.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

async fn proxy() -> Proxy {
    Proxy::start(([127, 0, 0, 1], 0).into(), echo().await, 1).await.unwrap()
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn ask(socket: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    socket.write_all(text).await?;
    let mut answer = vec![0; text.len()];
    timeout(SOON, socket.read_exact(&mut answer)).await.unwrap()?;
    Ok(answer)
}

/// What still comes, and how it ends.
async fn rest(socket: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut rest = Vec::new();
    let end = timeout(SOON, socket.read_to_end(&mut rest)).await.unwrap();
    (rest, end.err().map(|error| error.kind()))
}

fn to_upstream(way: Way) -> Behaviour {
    Behaviour { to_upstream: way, ..Behaviour::default() }
}

fn to_client(way: Way) -> Behaviour {
    Behaviour { to_client: way, ..Behaviour::default() }
}

#[tokio::test]
async fn bytes_and_ends_pass_both_ways() {
    let proxy = proxy().await;
    let mut socket = connect(&proxy).await;

    let answer = ask(&mut socket, b"hello").await.unwrap();
    socket.write_all(b"the last").await.unwrap();
    socket.shutdown().await.unwrap();

    assert_eq!(answer, b"hello");
    assert_eq!(rest(&mut socket).await, (b"the last".to_vec(), None));
}

#[tokio::test]
async fn a_closed_door_refuses_and_opens_again_on_the_same_port() {
    let proxy = proxy().await;
    let mut old = connect(&proxy).await;
    ask(&mut old, b"old").await.unwrap();

    proxy.set(Behaviour { door: Door::Closed, ..Behaviour::default() });
    sleep(Duration::from_millis(20)).await;
    let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
    let kept = ask(&mut old, b"kept").await;
    proxy.set(Behaviour::default());
    sleep(Duration::from_millis(20)).await;
    let again = ask(&mut connect(&proxy).await, b"again").await;

    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!((kept.unwrap(), again.unwrap()), (b"kept".to_vec(), b"again".to_vec()));
}

#[tokio::test]
async fn a_door_that_resets_accepts_first() {
    let proxy = proxy().await;
    proxy.set(Behaviour { door: Door::Resets, ..Behaviour::default() });
    sleep(Duration::from_millis(20)).await;

    let mut socket = connect(&proxy).await;

    assert_eq!(rest(&mut socket).await, (vec![], Some(ErrorKind::ConnectionReset)));
}

#[tokio::test]
async fn each_direction_can_be_delayed() {
    let proxy = proxy().await;
    let mut socket = connect(&proxy).await;
    ask(&mut socket, b"warm").await.unwrap();
    let delay = Way { delay: Duration::from_millis(80), ..Way::default() };

    for behaviour in [to_upstream(delay), to_client(delay)] {
        proxy.set(behaviour);
        let begun = Instant::now();
        ask(&mut socket, b"late").await.unwrap();

        assert!(begun.elapsed() >= delay.delay, "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_rate_is_kept() {
    let proxy = proxy().await;
    let mut socket = connect(&proxy).await;
    proxy.set(to_upstream(Way { bytes_per_s: Some(10_000), ..Way::default() }));

    let begun = Instant::now();
    ask(&mut socket, &[7; 1_000]).await.unwrap();
    ask(&mut socket, &[7; 1_000]).await.unwrap();

    assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_held_arrives_when_the_passage_opens() {
    let proxy = proxy().await;
    let mut socket = connect(&proxy).await;
    proxy.set(to_client(Way { passage: Passage::Held, ..Way::default() }));

    socket.write_all(b"held").await.unwrap();
    let mut answer = [0; 4];
    let early = timeout(NEVER, socket.read_exact(&mut answer)).await;
    proxy.set(Behaviour::default());
    timeout(SOON, socket.read_exact(&mut answer)).await.unwrap().unwrap();

    assert!(early.is_err());
    assert_eq!(&answer, b"held");
}

#[tokio::test]
async fn a_connection_that_lost_bytes_is_deaf_for_ever_and_others_are_not() {
    let proxy = proxy().await;
    let mut socket = connect(&proxy).await;
    ask(&mut socket, b"warm").await.unwrap();
    proxy.set(to_upstream(Way { passage: Passage::Lost, ..Way::default() }));

    socket.write_all(b"lost").await.unwrap();
    sleep(Duration::from_millis(20)).await;
    proxy.set(Behaviour::default());
    socket.write_all(b"too").await.unwrap();
    let deaf = timeout(NEVER, socket.read_u8()).await;

    assert!(deaf.is_err(), "{deaf:?}");
    assert_eq!(ask(&mut connect(&proxy).await, b"other").await.unwrap(), b"other");
}

#[tokio::test]
async fn a_trap_lets_so_many_bytes_pass_and_ends_one_connection_once() {
    let proxy = proxy().await;

    for (side, end, kind) in [
        (Side::Request, End::Close, None),
        (Side::Answer, End::Close, None),
        (Side::Request, End::Reset, Some(ErrorKind::ConnectionReset)),
        (Side::Answer, End::Reset, Some(ErrorKind::ConnectionReset)),
    ] {
        let (mut caught, mut other) = (connect(&proxy).await, connect(&proxy).await);
        ask(&mut other, b"before").await.unwrap();
        let sprung = proxy.arm(Trap { side, after: 3, end });

        caught.write_all(b"hello").await.unwrap();
        timeout(SOON, sprung).await.unwrap().unwrap();
        let (passed, ended) = rest(&mut caught).await;

        assert_eq!(ended, kind, "{side:?} {end:?}");
        // A reset may overtake what was on its way.
        assert!(b"hel".starts_with(&passed), "{side:?} {end:?}: {passed:?}");
        if (side, end) == (Side::Answer, End::Close) {
            assert_eq!(passed, b"hel");
        }
        assert_eq!(ask(&mut other, b"after").await.unwrap(), b"after", "{side:?} {end:?}");
    }
}

#[tokio::test]
async fn a_trap_counts_over_pieces_and_waits_for_the_next_when_its_connection_ends() {
    let proxy = proxy().await;
    let mut first = connect(&proxy).await;
    let mut sprung = proxy.arm(Trap { side: Side::Request, after: 6, end: End::Close });

    ask(&mut first, b"abcd").await.unwrap();
    drop(first);
    sleep(Duration::from_millis(50)).await;
    let early = sprung.try_recv();
    let mut second = connect(&proxy).await;
    second.write_all(b"efgh").await.unwrap();

    assert!(early.is_err());
    timeout(SOON, sprung).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_trap_that_was_taken_away_does_not_spring() {
    let proxy = proxy().await;
    let mut socket = connect(&proxy).await;
    let sprung = proxy.arm(Trap { side: Side::Request, after: 0, end: End::Reset });

    proxy.disarm();

    assert_eq!(ask(&mut socket, b"whole").await.unwrap(), b"whole");
    assert!(sprung.await.is_err());
}

#[tokio::test]
async fn open_connections_can_be_cut_and_new_ones_pass() {
    let proxy = proxy().await;
    let mut old = connect(&proxy).await;
    ask(&mut old, b"old").await.unwrap();

    let cut = proxy.cut_existing();

    assert_eq!(cut, 1);
    assert_eq!(rest(&mut old).await.1, Some(ErrorKind::ConnectionReset));
    assert_eq!(ask(&mut connect(&proxy).await, b"new").await.unwrap(), b"new");
}

#[tokio::test]
async fn the_same_seed_draws_the_same_jitter() {
    let upstream = echo().await;
    let way = Way { jitter: Duration::from_millis(50), ..Way::default() };
    let mut drawn = Vec::new();
    for seed in [7, 7, 8] {
        let proxy = Proxy::start(([127, 0, 0, 1], 0).into(), upstream, seed).await.unwrap();
        drawn.push([(); 4].map(|()| proxy.shared.wait_of(&way)));
    }

    assert_eq!(drawn[0], drawn[1]);
    assert_ne!(drawn[0], drawn[2]);
}
