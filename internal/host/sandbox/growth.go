package sandbox

import (
	"slices"
	"time"
)

// growthWindow is over how long a sandbox's writing is measured: long enough that one block more is
// not a torrent, short against the time in which a fast one fills what is left.
const growthWindow = time.Second

// sample is what a sandbox's disk held at a moment.
type sample struct {
	at    time.Time
	bytes int64
}

// growth is the samples of the sandboxes that run.
type growth map[string][]sample

// writer is a sandbox whose disk grew within the window.
type writer struct {
	s     *Sandbox
	grown int64
	rate  float64 // bytes a second
}

// add takes a sample and says what it grew by since the window's begin.
func (g growth) add(s *Sandbox, at time.Time, bytes int64) writer {
	id := s.ID()
	list := append(g[id], sample{at, bytes})
	for len(list) > 2 && at.Sub(list[1].at) >= growthWindow {
		list = list[1:]
	}
	g[id] = list
	first := list[0]
	w := writer{s: s, grown: max(bytes-first.bytes, 0)}
	if d := at.Sub(first.at); d > 0 {
		w.rate = float64(w.grown) / d.Seconds()
	}
	return w
}

// keep forgets all sandboxes but those.
func (g growth) keep(ids map[string]bool) {
	for id := range g {
		if !ids[id] {
			delete(g, id)
		}
	}
}

// leastGrowth is what counts as writing: the less is left, the less.
func leastGrowth(percent float64) int64 {
	switch {
	case percent >= 99:
		return 1
	case percent >= 98:
		return 64 << 10
	default:
		return 1 << 20
	}
}

// fastest are the writers, fastest first, that make up nine tenths of all the growth: the others may
// fill what is left of it later, and are looked at again in a moment.
func fastest(all []writer, least int64) []writer {
	all = slices.DeleteFunc(all, func(w writer) bool { return w.grown < least })
	slices.SortFunc(all, func(a, b writer) int { return int(b.grown - a.grown) })
	var total, taken int64
	for _, w := range all {
		total += w.grown
	}
	for i, w := range all {
		if taken += w.grown; taken*10 >= total*9 {
			return all[:i+1]
		}
	}
	return all
}
