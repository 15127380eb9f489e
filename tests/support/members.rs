//! Reads the tar streams of this program's own archives back, independently of its code.

/// Names and bodies of a stream's files, in order. Panics where the stream is not one.
pub fn members(stream: &[u8]) -> Vec<(String, Vec<u8>)> {
    let text = |field: &[u8]| {
        let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
        String::from_utf8(field[..end].to_vec()).unwrap()
    };
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let header = &stream[at..at + 512];
        if header.iter().all(|b| *b == 0) {
            assert!(stream[at..].iter().all(|b| *b == 0) && stream.len() == at + 1024);
            return found;
        }
        let size = usize::from_str_radix(text(&header[124..136]).trim(), 8).unwrap();
        at += 512;
        // `x` headers carry what does not fit: none of it is asked for here.
        if header[156] != b'x' {
            found.push((text(&header[..100]), stream[at..at + size].to_vec()));
        }
        at += size.div_ceil(512) * 512;
    }
}
