package memory

// span is a run of pages.
type span struct{ start, count uint32 }

func (s span) end() uint32 { return s.start + s.count }

// union merges two sorted lists of spans.
func union(a, b []span) []span {
	out := make([]span, 0, len(a)+len(b))
	for len(a) > 0 || len(b) > 0 {
		var s span
		if len(b) == 0 || (len(a) > 0 && a[0].start <= b[0].start) {
			s, a = a[0], a[1:]
		} else {
			s, b = b[0], b[1:]
		}
		out = appendSpan(out, s)
	}
	return out
}

// appendSpan adds s, which starts no earlier than the last span, joining what touches.
func appendSpan(list []span, s span) []span {
	if i := len(list) - 1; i >= 0 && s.start <= list[i].end() {
		if s.end() > list[i].end() {
			list[i].count = s.end() - list[i].start
		}
		return list
	}
	return append(list, s)
}

func pagesIn(list []span) int {
	n := 0
	for _, s := range list {
		n += int(s.count)
	}
	return n
}
