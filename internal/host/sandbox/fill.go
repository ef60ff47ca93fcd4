package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// How often the disk is looked at: the fuller, the more often. All of it together must not cost more
// than one part in lookShare of a CPU.
const (
	lookSeldom = 2 * time.Second
	lookWarned = 250 * time.Millisecond
	lookClose  = 50 * time.Millisecond
	lookShare  = 20
	// writesAtMost is how many bytes a second are reckoned with: a small disk is filled sooner than a
	// large one.
	writesAtMost = 4e9
)

// watchDisk looks at the disk until ctx ends.
func (m *Manager) watchDisk(ctx context.Context) {
	for {
		began := time.Now()
		d, err := m.fillOnce(ctx)
		if err != nil && ctx.Err() == nil {
			m.log.Error("watch the host's disk", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-m.gauge.crossed:
		case <-time.After(lookAgain(d, time.Since(began))):
		}
	}
}

// lookAgain is when to look again.
func lookAgain(d Disk, cost time.Duration) time.Duration {
	wait := lookSeldom
	switch {
	case d.UsedPercent >= d.Limits.Resume || d.State == FillFull:
		wait = lookClose
	case d.State == FillFilling:
		wait = lookWarned
	}
	toResume := float64(d.Total) * (d.Limits.Resume - d.UsedPercent) / 100
	if soonest := time.Duration(toResume / writesAtMost * float64(time.Second)); d.Total > 0 && soonest < wait {
		wait = max(soonest, lookClose)
	}
	return max(wait, min(cost*lookShare, lookSeldom))
}

// fillOnce looks at the disk once and begins what follows: writers are held on a full one, let go when
// it has room again. Below the fill from which that could come soon it costs one statfs.
func (m *Manager) fillOnce(ctx context.Context) (Disk, error) {
	m.gauge.passing.Lock()
	defer m.gauge.passing.Unlock()
	d, err := m.look()
	if err != nil || d.Total == 0 {
		return d, err
	}
	var writers []writer
	if d.UsedPercent >= d.Limits.Resume || d.State == FillFull {
		writers = m.measure()
	}
	if d.State == FillFull {
		m.holdWriters(ctx, d, writers)
		return d, nil
	}
	m.letGo(ctx)
	return d, m.fillReserve(d)
}

// measure samples the disks of the sandboxes that run.
func (m *Manager) measure() []writer {
	g := &m.gauge
	if g.growth == nil {
		g.growth = growth{}
	}
	var out []writer
	seen := map[string]bool{}
	for _, s := range m.list() {
		j := s.journal()
		if j.State != Running || j.Held != nil && s.still.Load() {
			continue
		}
		bytes, _ := linkedUse(s.dir.Disk())
		out = append(out, g.growth.add(s, time.Now(), bytes))
		seen[j.ID] = true
	}
	g.growth.keep(seen)
	return out
}

// holdWriters holds the fastest writers, and again who is held by the journal and does not stand
// still: this agent has adopted it, or its guest did not answer.
func (m *Manager) holdWriters(ctx context.Context, d Disk, all []writer) {
	rate := 0.0
	for _, w := range all {
		rate += w.rate
		if w.s.journal().Held != nil {
			m.at(w.s, func() error { return m.hold(ctx, w.s, "", quiesceFor(d, w.rate)) })
		}
	}
	for _, w := range fastest(all, leastGrowth(d.UsedPercent)) {
		why := fmt.Sprintf("frozen: the host's disk is %.0f %% full and it was writing %s; it goes on by itself below %.0f %%; pause or delete it, or free space",
			math.Floor(d.UsedPercent), rateText(w.rate), d.Limits.Resume)
		m.at(w.s, func() error { return m.hold(ctx, w.s, why, quiesceFor(d, rate)) })
	}
}

func rateText(rate float64) string {
	if rate < 1e6 {
		return fmt.Sprintf("%.0f kB/s", max(rate/1e3, 1))
	}
	return fmt.Sprintf("%.0f MB/s", rate/1e6)
}

// Bounds of the wait for a guest to hold its processes.
const (
	quiesceLeast = 100 * time.Millisecond
	quiesceMost  = 2 * time.Second
)

// quiesceFor is how long a guest may take to hold its processes: a quarter of the time in which what
// is left would be written.
func quiesceFor(d Disk, rate float64) time.Duration {
	if rate <= 0 {
		return quiesceMost
	}
	left := time.Duration(min(float64(d.Free)/rate/4, quiesceMost.Seconds()) * float64(time.Second))
	return max(left, quiesceLeast)
}

// letGo lets all that are held go on.
func (m *Manager) letGo(ctx context.Context) {
	for _, s := range m.list() {
		if s.journal().Held != nil {
			m.at(s, func() error { return m.letOneGo(ctx, s) })
		}
	}
}

// at does something to a sandbox beside the loop, unless that is being done already: a guest that does
// not answer must not keep the loop from the others.
func (m *Manager) at(s *Sandbox, do func() error) {
	if _, busy := m.gauge.busy.LoadOrStore(s, true); busy {
		return
	}
	m.Go(func() {
		defer m.gauge.busy.Delete(s)
		if err := do(); err != nil && !errors.Is(err, context.Canceled) {
			m.log.Warn("a full disk", "sandbox", s.ID(), "error", err)
		}
	})
}
