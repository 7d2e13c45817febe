//! Every known answer, asked of the token through the worker alone: no gateway between.

use std::time::Duration;

use gateway::config::Config;
use harness::soft::pin::{PinFormat, open_pin};
use harness::vectors::Vector;
use harness::world::{Wanted, World, program};
use hsm_adapter::client::{LinkError, TokenLink};
use hsm_adapter::error::Failure;
use hsm_adapter::protocol::{Answer, Message, Order, PinKey};
use hsm_adapter::vocabulary::{KeyLabel, KeyName, Ksn, Pan, PinBlock};
use tokio::time::Instant;

use crate::vector_keys::{MacCase, Translation, VectorKeys, macs, translations};

#[tokio::test]
async fn the_token_answers_every_translation_as_its_vector_says() {
    let mut keys = VectorKeys::default();
    let cases = translations(&mut keys);
    let token = Token::with(keys).await;

    let mut translated = 0;
    for Translation { vector: v, from, to } in &cases {
        let (inside, outside) = (v.part("in"), v.part("out"));
        // An order has one PAN: a change of it cannot be said, so such vectors keep the first.
        let pan = inside.find("pan").unwrap_or_else(|| outside.text("pan"));
        let order = Order::TranslatePin {
            pan: Pan::parse(pan).unwrap(),
            block: PinBlock::new(inside.hex("block")).unwrap(),
            from: side(from, &inside),
            to: side(to, &outside),
        };

        let answer = token.ask(order).await;

        match v.find("error") {
            None => {
                let Ok(Answer::Block { block, key_version: 1 }) = answer else {
                    panic!("{v}: {answer:?}")
                };
                assert_block(v, pan, block.expose());
                translated += 1;
            }
            Some("format_not_allowed" | "key_format_mismatch") => {
                let refused = Err(LinkError::Answered(Failure::KeyNotForThis(String::new())));
                assert_eq!(without_text(answer), refused, "{v}");
            }
            Some("pin_block_invalid") => {
                let refused = Err(LinkError::Answered(Failure::PinBlockRefused));
                assert_eq!(without_text(answer), refused, "{v}");
            }
            Some("pan_change") => assert!(answer.is_ok(), "{v}: its block is good"),
            Some(other) => panic!("{v}: error {other}"),
        }
    }
    assert_eq!((translated, cases.len()), (21, 29));
    token.stop_with_nothing_left().await;
}

#[tokio::test]
async fn the_token_makes_and_verifies_every_mac_as_its_vector_says() {
    let mut keys = VectorKeys::default();
    let cases = macs(&mut keys);
    let token = Token::with(keys).await;

    for (at, MacCase { vector: v, key }) in cases.iter().enumerate() {
        let (message, mac) = (v.hex("message"), v.hex("mac"));
        let key = || KeyName::from(KeyLabel::parse(key).unwrap());

        let order = Order::GenerateMac {
            key: key(),
            ksn: None,
            message: Message(message.clone()),
            length: None,
        };
        let made = token.ask(order).await;
        let verify = async |message: Vec<u8>, mac: Vec<u8>| {
            let (message, mac) = (Message(message), Message(mac));
            let order = Order::VerifyMac { key: key(), ksn: None, message, mac };
            match token.ask(order).await {
                Ok(Answer::Verified(verified)) => verified,
                other => panic!("{v}: {other:?}"),
            }
        };

        let Ok(Answer::Mac { mac: found, .. }) = made else { panic!("{v}: {made:?}") };
        assert_eq!(hex::encode_upper(&found.0), v.text("mac"), "{v}");
        assert!(verify(message.clone(), mac.clone()).await, "{v}");
        assert!(!verify(message.clone(), flipped(&mac, at)).await, "{v}: a bit of the MAC");
        assert!(
            !verify(message.clone(), mac[..mac.len() - 1].to_vec()).await,
            "{v}: a shorter MAC"
        );
        if !message.is_empty() {
            assert!(!verify(flipped(&message, at), mac).await, "{v}: a bit of the message");
        }
    }
    assert_eq!(cases.len(), 73);
    token.stop_with_nothing_left().await;
}

/// A token in a directory of its own and one worker on it.
pub(crate) struct Token {
    pub(crate) link: TokenLink,
    pub(crate) world: World,
}

impl Token {
    pub(crate) async fn with(keys: VectorKeys) -> Self {
        Self::of(Wanted { more_keys: keys.0, ..Wanted::default() }).await
    }

    pub(crate) async fn of(wanted: Wanted) -> Self {
        let world = World::prepare(wanted).unwrap();
        Self { link: one_worker(&world).await, world }
    }

    /// Whose worker may come up or say why not.
    pub(crate) fn starting(wanted: Wanted) -> Self {
        let world = World::prepare(wanted).unwrap();
        Self { link: worker_of(&world), world }
    }

    pub(crate) async fn ask(&self, order: Order) -> Result<Answer, LinkError> {
        self.link.call(&order, Instant::now() + Duration::from_secs(5)).await.1
    }

    pub(crate) async fn stop(self) {
        self.link.stop().await;
    }

    /// Stops, after a look at what the orders have left: no session object.
    pub(crate) async fn stop_with_nothing_left(self) {
        let answer = self.ask(Order::Lint).await;
        let Ok(Answer::Lint(report)) = answer else { panic!("{answer:?}") };
        assert_eq!(report.session_objects, 0);
        self.stop().await;
    }
}

/// A worker of its own on the token of this world, ready.
pub(crate) async fn one_worker(world: &World) -> TokenLink {
    let link = worker_of(world);
    let limit = Instant::now() + Duration::from_secs(15);
    while !link.is_up() {
        assert!(Instant::now() < limit, "{:?}", link.status());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    link
}

fn worker_of(world: &World) -> TokenLink {
    let config = Config::load(&world.config()).unwrap();
    let mut options = config.hsm.links().unwrap().remove(0).options;
    options.program = program("tollgate-hsm").unwrap();
    options.workers = 1;
    TokenLink::start(options)
}

pub(crate) fn side(label: &str, side: &Vector) -> PinKey {
    let format = format!("iso{}", side.number("format")).parse().unwrap();
    let ksn = side.has("dukpt").then(|| Ksn::parse(side.part("dukpt").text("ksn")).unwrap());
    PinKey { key: KeyLabel::parse(label).unwrap().into(), format, ksn }
}

/// Byte for byte where the format leaves no choice; else the PIN inside.
pub(crate) fn assert_block(v: &Vector, pan: &str, block: &[u8]) {
    let out = v.part("out");
    if out.number("format") == 0 {
        assert_eq!(hex::encode_upper(block), out.text("block"), "{v}");
    }
    let format: PinFormat = format!("iso{}", out.number("format")).parse().unwrap();
    let pin = open_pin(format, &out.hex("key"), pan, block);
    assert_eq!(pin.as_deref(), Ok(v.text("clear_pin")), "{v}");
}

/// These bytes with one bit changed: another one for each `at`.
pub(crate) fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let bit = at * 13 % (bytes.len() * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

/// The kind of a refusal; its words are for people.
pub(crate) fn without_text(answer: Result<Answer, LinkError>) -> Result<(), LinkError> {
    match answer {
        Err(LinkError::Answered(Failure::KeyNotForThis(_))) => {
            Err(LinkError::Answered(Failure::KeyNotForThis(String::new())))
        }
        other => other.map(|_| ()),
    }
}
