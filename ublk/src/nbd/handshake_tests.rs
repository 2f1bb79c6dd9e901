//! Tests of the negotiation on bytes: what clients say, and rubbish.

#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;
use std::io::Cursor;

const SHAPE: Shape = Shape {
    len: 1 << 30,
    block_bytes: 4096,
    read_only: false,
    write_cache: true,
    discard: true,
};

/// Reads what the client says, keeps what the server answers.
struct Talk {
    client: Cursor<Vec<u8>>,
    server: Vec<u8>,
}

impl Read for Talk {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.client.read(bytes)
    }
}

impl Write for Talk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.server.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn talk(client: Vec<u8>) -> (Result<Agreed, NoAgreement>, Vec<u8>) {
    let mut stream = Talk {
        client: Cursor::new(client),
        server: Vec::new(),
    };
    let handshake = Handshake {
        stream: &mut stream,
        export: "data",
        shape: SHAPE,
        preferred_bytes: 1 << 20,
    };
    (handshake.run(), stream.server)
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

fn wish(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&u16::try_from(infos.len()).unwrap().to_be_bytes());
    for wanted in infos {
        data.extend_from_slice(&wanted.to_be_bytes());
    }
    data
}

fn client(options: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    for one in options {
        bytes.extend_from_slice(one);
    }
    bytes
}

/// The answers after the greeting: to which option, which kind, with what.
fn answers(server: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
    let mut fields = Fields(&server[18..]);
    let mut found = Vec::new();
    while let Some(magic) = fields.u64() {
        assert_eq!(magic, OPTION_REPLY_MAGIC);
        let (kind, answer) = (fields.u32().unwrap(), fields.u32().unwrap());
        let len = fields.u32().unwrap();
        let data = fields.take(usize::try_from(len).unwrap()).unwrap();
        found.push((kind, answer, data.to_vec()));
    }
    found
}

#[test]
fn go_tells_size_flags_name_and_block_sizes_and_agrees() {
    let go = option(option::GO, &wish("data", &[info::NAME, info::BLOCK_SIZE]));
    let (agreed, server) = talk(client(&[option(option::STRUCTURED_REPLY, &[]), go]));
    assert_eq!(agreed.unwrap(), Agreed { structured: true });
    let answers = answers(&server);
    let kinds: Vec<_> = answers.iter().map(|(_, answer, _)| *answer).collect();
    use reply::{ACK, INFO};
    assert_eq!(kinds, [ACK, INFO, INFO, INFO, ACK]);
    assert_eq!(answers[1].2[..2], info::EXPORT.to_be_bytes());
    assert_eq!(answers[1].2[2..10], SHAPE.len.to_be_bytes());
    assert_eq!(answers[1].2[10..], SHAPE.flags(true).to_be_bytes());
    assert_eq!(answers[2].2[2..], *b"data");
    assert_eq!(answers[3].2, [0, 3, 0, 0, 16, 0, 0, 16, 0, 0, 2, 0, 0, 0]);
}

#[test]
fn info_describes_and_goes_on_and_list_names_the_export() {
    let (left, server) = talk(client(&[
        option(option::INFO, &wish("", &[])),
        option(option::LIST, &[]),
        option(option::ABORT, &[]),
    ]));
    assert!(matches!(left, Err(NoAgreement::Left)));
    let answers = answers(&server);
    let list = answers
        .iter()
        .find(|(_, answer, _)| *answer == reply::SERVER);
    assert_eq!(list.unwrap().2, [0, 0, 0, 4, b'd', b'a', b't', b'a']);
    assert_eq!(answers.last().unwrap().0, option::ABORT);
    assert_eq!(answers.last().unwrap().1, reply::ACK);
}

#[test]
fn what_is_not_offered_is_refused_and_the_talk_goes_on() {
    let (agreed, server) = talk(client(&[
        option(option::STARTTLS, &[]),
        option(99, b"what"),
        option(option::LIST, b"data"),
        option(option::GO, &wish("other", &[])),
        option(option::GO, b"rubbish"),
        option(option::INFO, &vec![0; 9000]),
        option(option::GO, &wish("data", &[])),
    ]));
    assert!(!agreed.unwrap().structured);
    let kinds: Vec<_> = answers(&server)
        .into_iter()
        .map(|(_, answer, _)| answer)
        .take(6)
        .collect();
    use reply::{INVALID, POLICY, TOO_BIG, UNKNOWN, UNSUPPORTED};
    assert_eq!(
        kinds,
        [POLICY, UNSUPPORTED, INVALID, UNKNOWN, INVALID, TOO_BIG]
    );
}

#[test]
fn an_old_client_gets_its_zeroes() {
    let mut bytes = 1_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option(option::EXPORT_NAME, b"data"));
    let (agreed, server) = talk(bytes);
    assert!(agreed.is_ok());
    assert_eq!(server.len(), 18 + 10 + handshake::ZEROES);
    assert_eq!(server[18..26], SHAPE.len.to_be_bytes());

    let (agreed, server) = talk(client(&[option(option::EXPORT_NAME, b"data")]));
    assert!(agreed.is_ok());
    assert_eq!(server.len(), 18 + 10);
    let (refused, _) = talk(client(&[option(option::EXPORT_NAME, b"other")]));
    assert!(matches!(refused, Err(NoAgreement::Broken(_))));
}

#[test]
fn a_client_that_only_asks_is_sent_away() {
    let many: Vec<_> = (0..OPTIONS_MAX)
        .map(|_| option(option::LIST, &[]))
        .collect();
    assert!(matches!(talk(client(&many)).0, Err(NoAgreement::Broken(_))));
    let mut long = option(option::INFO, &[]);
    long[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(
        talk(client(&[long])).0,
        Err(NoAgreement::Broken(_))
    ));
    let flags = 0x8000_0003_u32.to_be_bytes().to_vec();
    assert!(matches!(talk(flags).0, Err(NoAgreement::Broken(_))));
}

proptest! {
    #[test]
    fn rubbish_never_agrees_and_never_panics(
        flags in 0_u32..4,
        options in proptest::collection::vec(
            (0_u32..12, proptest::collection::vec(any::<u8>(), 0..40), any::<bool>()),
            0..20,
        ),
        tail in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = flags.to_be_bytes().to_vec();
        let mut asks = false;
        for (kind, data, sound) in &options {
            let mut one = option(*kind, data);
            if !sound {
                one[3] ^= 1;
            }
            // Only these two can lead to an agreement, and random data hardly ever does.
            let names = [option::EXPORT_NAME, option::GO];
            asks |= *sound && names.contains(kind);
            bytes.extend_from_slice(&one);
        }
        bytes.extend_from_slice(&tail);
        let (result, server) = talk(bytes);
        prop_assert!(server.starts_with(&MAGIC.to_be_bytes()));
        prop_assert!(asks || result.is_err());
    }
}
