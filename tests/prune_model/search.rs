//! Visits every state that can be reached, nearest first.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{BuildHasherDefault, Hasher};

use super::protocol::Setting;
use super::world::World;

/// More states than a search of seconds can visit: the universe is too large.
const STATES_LIMIT: usize = 4_000_000;

/// What a search came to.
pub struct Searched {
    pub states: usize,
    /// The shortest way to a state that must not be.
    pub violation: Option<String>,
}

/// Searches from `start`; stops at the first state in which `fault` finds something.
pub fn search(
    setting: &Setting,
    start: World,
    fault: impl Fn(&World) -> Option<String>,
) -> Searched {
    let mut known: HashSet<World, Fast> = HashSet::default();
    let mut states = vec![start];
    let mut came_from: Vec<u32> = vec![0];
    known.insert(start);
    let mut at = 0;
    let mut next = Vec::new();
    while at < states.len() {
        next.clear();
        setting.successors(&states[at], &mut next);
        for world in next.drain(..) {
            if !known.insert(world) {
                continue;
            }
            states.push(world);
            came_from.push(u32::try_from(at).unwrap());
            if let Some(fault) = fault(&world) {
                return Searched {
                    states: states.len(),
                    violation: Some(trace(setting, &states, &came_from, &fault)),
                };
            }
        }
        assert!(
            states.len() < STATES_LIMIT,
            "more than {STATES_LIMIT} states"
        );
        at += 1;
    }
    Searched {
        states: states.len(),
        violation: None,
    }
}

fn trace(setting: &Setting, states: &[World], came_from: &[u32], fault: &str) -> String {
    let mut way = vec![states.len() - 1];
    while *way.last().unwrap() != 0 {
        way.push(came_from[*way.last().unwrap()] as usize);
    }
    way.reverse();
    let mut text = String::new();
    for pair in way.windows(2) {
        let said = setting.describe(&states[pair[0]], &states[pair[1]]);
        writeln!(text, "  {said}").unwrap();
    }
    writeln!(text, "  => {fault}").unwrap();
    text
}

/// A multiply-rotate hash: the standard one costs half the search.
#[derive(Default)]
pub struct FastHasher(u64);

type Fast = BuildHasherDefault<FastHasher>;

impl FastHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.add(u64::from(byte));
    }

    fn write_isize(&mut self, word: isize) {
        self.add(word.cast_unsigned() as u64);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }
}
