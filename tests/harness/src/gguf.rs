//! The smallest GGUF file Ollama can read the details of, blown up to any size.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

const ALIGNMENT: usize = 32;
const STRING: u32 = 8;
const UINT32: u32 = 4;
const F32: u32 = 0;

/// Builds a model file of one tensor with `tensor_bytes` (rounded up) of noise made from `seed`.
pub fn build(tensor_bytes: usize, seed: u64) -> Vec<u8> {
    let floats = tensor_bytes.div_ceil(ALIGNMENT).max(1) * (ALIGNMENT / 4);
    let mut file = Vec::with_capacity(floats * 4 + 512);
    file.extend(b"GGUF");
    file.extend(3_u32.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.extend(3_u64.to_le_bytes());
    push_string(&mut file, "general.architecture");
    file.extend(STRING.to_le_bytes());
    push_string(&mut file, "llama");
    push_string(&mut file, "general.name");
    file.extend(STRING.to_le_bytes());
    push_string(&mut file, &format!("harness {seed}"));
    push_string(&mut file, "general.alignment");
    file.extend(UINT32.to_le_bytes());
    file.extend(32_u32.to_le_bytes());
    push_string(&mut file, "token_embd.weight");
    file.extend(1_u32.to_le_bytes());
    file.extend((floats as u64).to_le_bytes());
    file.extend(F32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    let mut noise = Noise(seed ^ 0x9e37_79b9_7f4a_7c15);
    for _ in 0..floats {
        file.extend(noise.word().to_le_bytes());
    }
    file
}

fn push_string(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

/// SplitMix64: the same noise for the same seed, which does not compress.
pub struct Noise(pub u64);

impl Noise {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 32) as u32
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        let word = |_| f32::from((self.word() >> 16) as u16) / 65536.0 + 0.001;
        (0..count).map(word).collect()
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = (0..length.div_ceil(4)).flat_map(|_| self.word().to_le_bytes());
        words.take(length).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn a_model_file_is_aligned_and_the_same_for_the_same_seed() {
        let file = build(1000, 7);
        assert_eq!(&file[..4], b"GGUF");
        assert_eq!(file.len() % ALIGNMENT, 0);
        assert!(file.len() >= 1000);
        assert_eq!(file, build(1000, 7));
        assert_ne!(file, build(1000, 8));
    }
}
