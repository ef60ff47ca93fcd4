package console

import "bytes"

// tailSize is how much is kept at hand, for the reason of an exit.
const tailSize = 16 << 10

// Tail keeps the last 16 KiB written to it.
type Tail struct{ kept []byte }

// Write takes text.
func (t *Tail) Write(p []byte) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - tailSize; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
}

// Bytes are a copy of what is kept.
func (t *Tail) Bytes() []byte { return append([]byte(nil), t.kept...) }

var panicMark = []byte("Kernel panic - not syncing")

// Panic finds what the guest's kernel said when it panicked.
func Panic(text []byte) (why string, found bool) {
	i := bytes.LastIndex(text, panicMark)
	if i < 0 {
		return "", false
	}
	line, _, _ := bytes.Cut(text[i+len(panicMark):], []byte("\n"))
	return "guest panicked" + Printable(line), true
}

// Printable keeps a guest's text from doing anything in a log or a terminal.
func Printable(line []byte) string {
	const most = 200
	clean := bytes.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, line[:min(len(line), most)])
	return string(clean)
}
