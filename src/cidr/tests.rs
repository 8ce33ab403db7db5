use super::*;
use proptest::prelude::*;

fn refused(text: &str) -> &'static str {
    Prefix::parse(text)
        .and_then(|prefix| Limits::default().check(prefix))
        .expect_err(text)
        .reason()
}

#[test]
fn refuses_what_the_gateway_would_accept_silently() {
    let cases = [
        ("not-an-ip", "NotAnAddress"),
        ("", "NotAnAddress"),
        ("10.0.0.0/33", "NotAnAddress"),
        ("10.0.1.7/24", "HostBits"),
        ("0.0.0.0/0", "Unspecified"),
        ("::/0", "Unspecified"),
        ("0.0.0.0/1", "Unspecified"),
        ("128.0.0.0/1", "LinkLocal"),
        ("64.0.0.0/2", "Loopback"),
        ("127.0.0.1/32", "Loopback"),
        ("::1", "Loopback"),
        ("169.254.169.254", "LinkLocal"),
        ("fe80::1", "LinkLocal"),
        ("224.0.0.1", "Multicast"),
        ("10.0.0.0/8", "TooWide"),
        ("fd00::/32", "TooWide"),
        ("::ffff:0:0/96", "Unspecified"),
        ("::ffff:127.0.0.1", "Loopback"),
    ];
    for (text, reason) in cases {
        assert_eq!(refused(text), reason, "{text}");
    }
}

#[test]
fn mapped_ipv4_is_ipv4() {
    assert_eq!(
        Prefix::parse("::ffff:10.1.0.0/112").expect("mapped").to_string(),
        "10.1.0.0/16"
    );
    assert_eq!(
        Prefix::parse("::ffff:10.1.0.5").expect("mapped").to_string(),
        "10.1.0.5/32"
    );
}

#[test]
fn host_bits_message_says_what_to_write() {
    let message = Prefix::parse("10.0.1.7/24").expect_err("host bits").to_string();
    assert_eq!(
        message,
        "10.0.1.7/24 has host bits set: write 10.0.1.0/24 for the network, or 10.0.1.7 for the one address"
    );
}

#[test]
fn covered_prefixes_merge_with_their_evidence() {
    let mut set = PrefixSet::default();
    for text in ["10.0.1.0/25", "10.0.1.5/32", "10.0.1.0/24"] {
        set.insert(Prefix::parse(text).expect(text), text);
    }
    let all: Vec<_> = set
        .iter()
        .map(|(prefix, evidence)| (prefix.to_string(), evidence.len()))
        .collect();
    assert_eq!(all, [("10.0.1.0/24".to_owned(), 3)]);
}

#[test]
fn spelling_and_order_do_not_count() {
    let read = |texts: &[&str]| same_addresses(texts.iter().filter_map(|text| as_the_gateway_reads(text)));
    assert_eq!(
        read(&["10.0.0.1", "10.0.0.2/32", "not-an-ip"]),
        read(&["10.0.0.2", "10.0.0.1/32", "10.0.0.1"])
    );
    assert_ne!(read(&["10.0.0.1"]), read(&["10.0.0.0/31"]));
}

#[test]
fn metadata_services_never_get_a_credential() {
    for text in [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fd00:ec2::254",
        "168.63.129.16",
        "0.0.0.0",
        "100.100.100.200",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "::169.254.169.254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "0.1.2.3",
    ] {
        assert!(never_a_gateway(text.parse().expect(text)), "{text}");
    }
    for text in ["127.0.0.1", "10.0.0.1", "192.168.1.4", "fd00::5", "203.0.113.9"] {
        assert!(!never_a_gateway(text.parse().expect(text)), "{text}");
    }
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    // A small corner of the address space, so that covering and being equal really happen.
    (0u8..4, 0u8..=255, 24u8..=32).prop_filter_map("special", |(third, fourth, length)| {
        let net = Ipv4Net::new([10, 0, third, fourth].into(), length).ok()?.trunc();
        Prefix::parse(&net.to_string()).ok()
    })
}

proptest! {
    #[test]
    fn the_set_covers_exactly_its_inputs(prefixes in prop::collection::vec(any_prefix(), 0..40)) {
        let mut set = PrefixSet::default();
        for prefix in &prefixes {
            set.insert(*prefix, prefix.to_string());
        }
        let before = same_addresses(prefixes.iter().map(Prefix::net));
        let after = same_addresses(set.prefixes().iter().map(Prefix::net));
        prop_assert_eq!(before, after);
        // No entry lies within another one, and every input is evidence of the entry that covers it.
        let kept = set.prefixes();
        for outer in &kept {
            prop_assert_eq!(kept.iter().filter(|inner| outer.covers(inner)).count(), 1);
        }
        for prefix in &prefixes {
            prop_assert!(set.iter().any(|(home, evidence)| home.covers(prefix) && evidence.contains(&prefix.to_string())));
        }
    }

    #[test]
    fn parsing_never_panics_and_what_it_accepts_reads_back(text in "\\PC{0,48}") {
        if let Ok(prefix) = Prefix::parse(&text) {
            prop_assert_eq!(Prefix::parse(&prefix.to_string()), Ok(prefix));
        }
    }

    #[test]
    fn address_like_texts_never_panic(text in "[0-9a-f:./]{0,44}") {
        let _ = Prefix::parse(&text);
        let _ = as_the_gateway_reads(&text);
    }
}
