package uffd

import (
	"errors"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// prefetchBatch is how many pages are put in the order of their addresses before those that were
// needed later.
const prefetchBatch = 512

// prefetch puts a working set, in the order in which it was needed but for neighbours. It ends
// early when stopped is closed, and does not mind what cannot be put: who needs it will ask.
func (s *server) prefetch(set []run, stopped <-chan struct{}) error {
	p := newPutter(s)
	for len(set) > 0 {
		n, pages := 0, uint32(0)
		for n < len(set) && pages < prefetchBatch {
			pages += set[n].count
			n++
		}
		part := merged(set[:n])
		set = set[n:]
		for _, r := range part {
			if err := s.prefetchRun(p, r, stopped); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *server) prefetchRun(p *putter, r run, stopped <-chan struct{}) error {
	for at, end := r.start, r.start+r.count; at < end; {
		select {
		case <-stopped:
			return nil
		default:
		}
		if at += alike(s.present, at, end-at, true); at >= end {
			return nil
		}
		count, err := p.put(at, alike(s.present, at, end-at, false))
		switch {
		case errors.Is(err, unix.EAGAIN):
			time.Sleep(changing) // the serving goroutine reads what it is about
			continue
		case errors.Is(err, errGone):
			return nil // the serving goroutine sees it too
		case err != nil:
			return err
		}
		s.state.count(countPrefetched, count)
		at += max(count, 1)
	}
	return nil
}

// merged sorts runs by address and joins those that touch.
func merged(set []run) []run {
	sorted := append([]run(nil), set...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].start < sorted[j].start })
	out := sorted[:0]
	for _, r := range sorted {
		if i := len(out) - 1; i >= 0 && r.start <= out[i].start+out[i].count {
			out[i].count = max(out[i].start+out[i].count, r.start+r.count) - out[i].start
			continue
		}
		out = append(out, r)
	}
	return out
}
