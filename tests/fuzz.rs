//! The fuzz targets on random inputs, some thousand each: what a fuzzer does for hours, for a second.
//!
//! Every input is a seed of `fuzz/seeds/` with some of its bytes changed; the same ones every time.
//! `Q4HIFI_FUZZ_ROUNDS` says how many inputs each target gets, `Q4HIFI_FUZZ_TARGET` names the only one.

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;
use targets::TARGETS;

fn rounds() -> usize {
    std::env::var("Q4HIFI_FUZZ_ROUNDS").map_or(2000, |rounds| rounds.parse().expect("a number"))
}

/// A small generator: xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Changes, cuts off or repeats some of the bytes.
fn mutate(data: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(8) {
            0 => data.truncate(at),
            1 => data.insert(at, random.next() as u8),
            2 => data.extend_from_within(at..),
            3 => data.iter_mut().skip(at).for_each(|byte| *byte = random.next() as u8),
            4 => {
                let special = [0u8, 1, 0x7f, 0x80, 0xff];
                let byte = special[random.below(5)];
                data.iter_mut().skip(at).take(4).for_each(|b| *b = byte);
            }
            _ => {
                if let Some(byte) = data.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
    data.truncate(4096);
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let files = std::fs::read_dir(&folder).expect("a folder of seeds");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a seed")).collect()
}

#[test]
fn mutated_seeds_panic_nowhere() {
    let only = std::env::var("Q4HIFI_FUZZ_TARGET").ok();
    for (name, target) in TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| target(seed));
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for i in 0..rounds() {
            let mut data = seeds[i % seeds.len()].clone();
            mutate(&mut data, &mut random);
            if std::panic::catch_unwind(|| target(&data)).is_err() {
                panic!("{name}, input {i}: {data:?}");
            }
        }
    }
}
