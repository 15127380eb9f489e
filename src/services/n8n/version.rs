//! Which n8n it is, and which of two is older.

use std::cmp::Ordering;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regex::Regex;

use crate::services::support::Endpoint;

/// Three numbers, with anything behind them.
static NUMBERS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?:^|[^0-9.])([0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6})(?:[^0-9.]|$)").ok()
});
/// n8n 2.41 puts its release into every page it serves, logged in or not: base64 of `{"release":"n8n@2.41.1",…}`.
static RELEASE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r#"<meta name="n8n:config:sentry" content="([A-Za-z0-9+/=]{1,4000})""#).ok()
});

/// The version of a running n8n; `None` when it does not tell. Its REST API tells it only after a login.
pub(super) async fn ask(endpoint: Option<&Endpoint>) -> Option<String> {
    let base = endpoint?.base().await.ok()?;
    let page = base.body("read n8n's page", base.get("/")).await.ok()?;
    of_page(&String::from_utf8_lossy(&page))
}

fn of_page(page: &str) -> Option<String> {
    let encoded = RELEASE.as_ref()?.captures(page)?.get(1)?.as_str();
    let json: serde_json::Value = serde_json::from_slice(&STANDARD.decode(encoded).ok()?).ok()?;
    numbers(json.get("release")?.as_str()?)
}

/// The version in an image's tag, such as `n8nio/n8n:2.41.1`.
pub(super) fn of_image(image: &str) -> Option<String> {
    let name = image.split('@').next()?;
    let (_, tag) = name
        .rsplit_once('/')
        .unwrap_or(("", name))
        .1
        .split_once(':')?;
    numbers(tag)
}

/// Which of two versions is older; `None` when one of them is none.
pub(super) fn compare(a: &str, b: &str) -> Option<Ordering> {
    let parse = |text: &str| -> Option<Vec<u32>> {
        numbers(text)?.split('.').map(|n| n.parse().ok()).collect()
    };
    Some(parse(a)?.cmp(&parse(b)?))
}

fn numbers(text: &str) -> Option<String> {
    Some(
        NUMBERS
            .as_ref()?
            .captures(text)?
            .get(1)?
            .as_str()
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn versions_are_found_in_pages_and_image_tags() {
        let page = r#"<meta name="n8n:config:rest-endpoint" content="cmVzdA=="><meta name="n8n:config:sentry" content="eyJkc24iOiIiLCJlbnZpcm9ubWVudCI6ImRldmVsb3BtZW50IiwicmVsZWFzZSI6Im44bkAyLjQxLjEifQ==">"#;
        assert_eq!(of_page(page).as_deref(), Some("2.41.1"));
        assert_eq!(of_page("<html>"), None);
        for (image, version) in [
            ("n8nio/n8n:2.41.1", Some("2.41.1")),
            ("host:5000/n8nio/n8n:1.99.0-exp@sha256:00", Some("1.99.0")),
            ("host:5000/n8nio/n8n", None),
            ("n8n:latest", None),
            ("n8n:2", None),
        ] {
            assert_eq!(of_image(image).as_deref(), version, "{image}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(compare("2.9.0", "2.41.1"), Some(Ordering::Less));
        assert_eq!(compare("n8n@2.41.1", "2.41.1"), Some(Ordering::Equal));
        assert_eq!(compare("10.0.0", "9.9.9"), Some(Ordering::Greater));
        assert_eq!(compare("unknown", "2.41.1"), None);
    }
}
