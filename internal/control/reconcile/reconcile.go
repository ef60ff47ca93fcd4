// Package reconcile keeps rows true to what their host reports. One round reads the rows,
// then the host's list (in that order: a sandbox made in between is in the list, and a row
// changed in between loses the compare-and-set), and lets every unclaimed row follow:
//
//   - running, paused, failed and lost follow the host's state of the same or a newer
//     generation
//   - a row that the host does not know, asked once more by name, becomes failed, or deleted
//     when it was still being created
//   - a row in deleting whose delete failed is deleted again
//   - a sandbox at the host whose row says deleted is destroyed; one without any row is
//     reported in the log and left alone: it may be another installation's data
//   - templates that the host builds follow its list; made ones that it has no more are lost,
//     interrupted creations are decided by what the host has, deletes are repeated, and
//     what it has without a row is reported and left alone (leaks names and removes it)
//
// A claimed row is left alone until its deadline. A host that does not answer changes
// nothing.
package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/api/gen/roost/host/v1/hostv1connect"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/lifecycle"
)

const (
	defaultInterval = 5 * time.Second
	roundLimit      = time.Minute
	deletesAtOnce   = 8
)

// Config is what a Loop works with.
type Config struct {
	Store     *store.Store
	Client    hostv1connect.HostServiceClient
	Sandboxes *sandbox.Service
	Templates *template.Service
	Logger    *slog.Logger
	Now       func() time.Time
	// Interval between rounds. Default 5 s.
	Interval time.Duration
}

// Loop runs rounds until it is stopped.
type Loop struct {
	lifecycle.Base
	Config

	// Only the loop's goroutine uses these.
	unknown map[string]bool
	strayed map[string]bool
	away    bool
}

// New makes a Loop.
func New(c Config) *Loop {
	if c.Interval == 0 {
		c.Interval = defaultInterval
	}
	return &Loop{Config: c, unknown: map[string]bool{}, strayed: map[string]bool{}}
}

// Result counts what one round did.
type Result struct {
	Healed    int      // rows that took another state or generation
	Lost      int      // rows whose sandbox the host does not know
	Deleted   int      // deletes brought to their end
	Leftovers int      // sandboxes destroyed whose row was deleted
	Unknown   []string // sandboxes at the host without a row
	Purged    int      // rows dropped a day after their end
	Templates int      // rows of templates that took another state, or went
	Strays    []string // snapshots and templates at the host without a row
}

// Start runs the loop; the first round begins at once.
func (l *Loop) Start(ctx context.Context) error {
	run, ok, err := l.Begin(ctx)
	if !ok || err != nil {
		return err
	}
	l.Go(func() { l.loop(run) })
	return nil
}

func (l *Loop) loop(ctx context.Context) {
	tick := time.NewTicker(l.Interval)
	defer tick.Stop()
	for {
		round, cancel := context.WithTimeout(ctx, roundLimit)
		result, err := l.runOnce(round)
		cancel()
		if ctx.Err() == nil {
			l.tell(result, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// tell logs changes, and an absent host once.
func (l *Loop) tell(r Result, err error) {
	away := fault.Is(err, fault.Unavailable)
	switch {
	case away && !l.away:
		l.Logger.Warn("host does not answer; rows stay as they are", "host_id", host.LocalID, "error", err)
	case err != nil && !away:
		l.Logger.Error("reconcile failed", "error", err)
	case err == nil && l.away:
		l.Logger.Info("host answers again", "host_id", host.LocalID)
	}
	l.away = away
	if r.Healed+r.Lost+r.Deleted+r.Leftovers+r.Templates > 0 {
		l.Logger.Info("reconciled", "healed", r.Healed, "lost", r.Lost, "deleted", r.Deleted,
			"leftovers", r.Leftovers, "templates", r.Templates)
	}
	for _, id := range r.Unknown {
		if !l.unknown[id] {
			l.Logger.Warn("host has a sandbox that no row knows; it is left alone", "sandbox_id", id)
		}
	}
	for _, name := range r.Strays {
		if !l.strayed[name] {
			l.Logger.Warn("host has something that no row knows; it is left alone (`roost doctor leaks` removes it)", "what", name)
		}
	}
	if err == nil {
		l.unknown, l.strayed = setOf(r.Unknown), setOf(r.Strays)
	}
}

// runOnce is one round. Failures of single rows do not keep it from the others.
func (l *Loop) runOnce(ctx context.Context) (Result, error) {
	var r Result
	var err error
	if r.Purged, err = l.purge(ctx); err != nil {
		return r, err
	}
	rows, err := l.Store.Sandboxes(ctx, store.Filter{})
	if err != nil {
		return r, err
	}
	resp, err := l.Client.ListSandboxes(ctx, connect.NewRequest(&hostv1.ListSandboxesRequest{}))
	if err != nil {
		return r, host.CallError(err, "list", "the host's sandboxes")
	}
	reports := make(map[string]*hostv1.Sandbox, len(resp.Msg.GetSandboxes()))
	for _, sb := range resp.Msg.GetSandboxes() {
		reports[sb.GetId()] = sb
	}
	err = errors.Join(
		l.follow(ctx, rows, reports, &r),
		l.missing(ctx, rows, reports, &r),
		l.deleting(ctx, rows, &r),
		l.strangers(ctx, rows, reports, &r),
		l.followTemplates(ctx, &r))
	return r, err
}

func (l *Loop) purge(ctx context.Context) (int, error) {
	before := l.Now().Add(-sandbox.KeepDeleted)
	if err := l.Store.PurgeIdempotency(ctx, before); err != nil {
		return 0, err
	}
	return l.Store.PurgeSandboxes(ctx, before)
}

// follow lets rows take their reports, all in one transaction.
func (l *Loop) follow(ctx context.Context, rows []*store.Sandbox, reports map[string]*hostv1.Sandbox, r *Result) error {
	var healed, figures []store.Swap
	now := l.Now()
	for _, row := range rows {
		report := reports[row.ID]
		if report == nil {
			continue
		}
		if next, changed := sandbox.Heal(row, report, now); changed {
			l.Logger.Info("row follows its host", "sandbox_id", row.ID, "from", row.State, "to", next.State,
				"generation", next.Generation, "reason", next.Reason)
			healed = append(healed, store.Swap{Seen: row, Next: next})
		} else if next, changed := sandbox.Figures(row, report, now); changed {
			figures = append(figures, store.Swap{Seen: row, Next: next})
		}
	}
	n, err := l.Sandboxes.Apply(ctx, healed)
	r.Healed = n
	_, ferr := l.Sandboxes.Apply(ctx, figures)
	return errors.Join(err, ferr)
}

// missing asks once more, by name, for each sandbox that the host's list lacks.
func (l *Loop) missing(ctx context.Context, rows []*store.Sandbox, reports map[string]*hostv1.Sandbox, r *Result) error {
	var errs []error
	now := l.Now()
	for _, row := range rows {
		if reports[row.ID] != nil {
			continue
		}
		if _, changed := sandbox.Heal(row, nil, now); !changed {
			continue
		}
		fresh, err := l.Sandboxes.Refresh(ctx, row)
		switch {
		case err != nil:
			errs = append(errs, err)
		case fresh.State == store.Failed || fresh.State == store.Deleted:
			l.Logger.Warn("host does not know a sandbox", "sandbox_id", row.ID, "from", row.State, "to", fresh.State)
			r.Lost++
		}
	}
	return errors.Join(errs...)
}

// deleting repeats deletes that nobody works on.
func (l *Loop) deleting(ctx context.Context, rows []*store.Sandbox, r *Result) error {
	var ids []string
	now := l.Now()
	for _, row := range rows {
		if row.State == store.Deleting && !row.Claimed(now) {
			ids = append(ids, row.ID)
		}
	}
	n, err := each(ids, func(id string) error { return l.Sandboxes.Delete(ctx, id) })
	r.Deleted = n
	return err
}

// strangers handles what the host has and no live row names.
func (l *Loop) strangers(ctx context.Context, rows []*store.Sandbox, reports map[string]*hostv1.Sandbox, r *Result) error {
	known := make(map[string]bool, len(rows))
	for _, row := range rows {
		known[row.ID] = true
	}
	var errs []error
	for id := range reports {
		if known[id] {
			continue
		}
		row, err := l.Store.Sandbox(ctx, id)
		switch {
		case fault.Is(err, fault.NotFound):
			r.Unknown = append(r.Unknown, id)
		case err != nil:
			errs = append(errs, err)
		case row.State == store.Deleted:
			if err := l.Sandboxes.DestroyLeftover(ctx, row); err != nil {
				errs = append(errs, err)
				continue
			}
			l.Logger.Warn("host had a deleted sandbox; destroyed", "sandbox_id", id)
			r.Leftovers++
		}
	}
	return errors.Join(errs...)
}

// each calls f for every id, some at once, and counts the successes.
func each(ids []string, f func(string) error) (int, error) {
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		n    int
		errs []error
	)
	slots := make(chan struct{}, deletesAtOnce)
	for _, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			err := f(id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			n++
		})
	}
	wg.Wait()
	return n, errors.Join(errs...)
}

func setOf(ids []string) map[string]bool {
	set := make(map[string]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}
