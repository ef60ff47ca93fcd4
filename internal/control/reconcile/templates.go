package reconcile

import (
	"context"
	"errors"

	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
)

// followTemplates is the part of a round that looks after templates and snapshots. Rows are
// read before the host's lists, as with sandboxes.
func (l *Loop) followTemplates(ctx context.Context, r *Result) error {
	rows, err := l.Store.Templates(ctx, store.TemplateFilter{})
	if err != nil {
		return err
	}
	inv, err := l.Templates.Inventory(ctx)
	if err != nil {
		return err
	}
	return errors.Join(l.strays(ctx, rows, inv, r), l.Templates.SyncWith(ctx, rows, inv.Templates),
		l.resting(ctx, rows, inv, r), l.unfinished(ctx, rows, r))
}

// resting lets rows that nobody works on take what the host has, all in one transaction.
// What the list lacks is asked for once more, by name.
func (l *Loop) resting(ctx context.Context, rows []*store.Template, inv template.Inventory, r *Result) error {
	var swaps []store.TemplateSwap
	var errs []error
	now := l.Now()
	for _, row := range rows {
		next, changed := template.Heal(row, inv.Of(row), now)
		if changed && !inv.Of(row).Whole(row) {
			found, err := l.Templates.Look(ctx, row)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			next, changed = template.Heal(row, found, now)
			if changed && next.SnapshotID != row.SnapshotID && found.Damage != "" {
				// Memory that no row will know any more.
				_, err = l.Templates.DropStraySnapshot(ctx, row.SnapshotID)
				errs = append(errs, err)
			}
		}
		if !changed {
			continue
		}
		if next.State != row.State {
			l.Logger.Warn("template follows its host", "template", row.Name, "from", row.State, "to", next.State, "reason", next.Reason)
			r.Templates++
		}
		swaps = append(swaps, store.TemplateSwap{Seen: row, Next: next})
	}
	if len(swaps) > 0 {
		_, err := l.Store.SwapTemplates(ctx, swaps)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// unfinished ends what somebody began and nobody works on any more.
func (l *Loop) unfinished(ctx context.Context, rows []*store.Template, r *Result) error {
	var errs []error
	now := l.Now()
	for _, row := range rows {
		if row.Claimed(now) {
			continue
		}
		switch row.State {
		case store.TemplateCreating:
			ready, err := l.Templates.Resolve(ctx, row)
			errs = append(errs, err)
			if err == nil {
				l.Logger.Warn("interrupted template is decided by its host", "template", row.Name, "ready", ready != nil)
				r.Templates++
			}
		case store.TemplateDeleting:
			err := l.Templates.Finish(ctx, row)
			errs = append(errs, err)
			if err == nil {
				r.Templates++
			}
		default:
		}
	}
	return errors.Join(errs...)
}

// strays reports what the host has without a row. One that came after the rows were read
// has its row by now; one whose row was erased before the host was done is dropped.
func (l *Loop) strays(ctx context.Context, rows []*store.Template, inv template.Inventory, r *Result) error {
	if len(inv.StraySnapshots(rows))+len(inv.StrayTemplates(rows)) == 0 {
		return nil
	}
	rows, err := l.Store.Templates(ctx, store.TemplateFilter{})
	if err != nil {
		return err
	}
	var errs []error
	for _, snap := range inv.StraySnapshots(rows) {
		drop := func() (bool, error) { return l.Templates.DropStraySnapshot(ctx, snap.GetId()) }
		errs = append(errs, l.stray("snapshot "+snap.GetId(), l.Templates.Erased(snap.GetId()), drop, r))
	}
	for _, t := range inv.StrayTemplates(rows) {
		drop := func() (bool, error) { return l.Templates.DropStrayTemplate(ctx, t.GetName()) }
		errs = append(errs, l.stray("template "+t.GetName(), l.Templates.ErasedName(t.GetName()), drop, r))
	}
	return errors.Join(errs...)
}

func (l *Loop) stray(what string, erased bool, drop func() (bool, error), r *Result) error {
	if !erased {
		r.Strays = append(r.Strays, what)
		return nil
	}
	had, err := drop()
	if err != nil || !had { // not there: it was on its way out when the list was made
		return err
	}
	l.Logger.Warn("host finished what was given up; dropped", "what", what)
	r.Leftovers++
	return nil
}
