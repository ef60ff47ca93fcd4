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
	l.strays(ctx, rows, inv, r)
	return errors.Join(l.Templates.SyncWith(ctx, rows, inv.Templates),
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
				errs = append(errs, l.Templates.DropSnapshot(ctx, row.SnapshotID))
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
// has its row by now.
func (l *Loop) strays(ctx context.Context, rows []*store.Template, inv template.Inventory, r *Result) {
	snapshots, templates := inv.StraySnapshots(rows), inv.StrayTemplates(rows)
	if len(snapshots)+len(templates) == 0 {
		return
	}
	rows, err := l.Store.Templates(ctx, store.TemplateFilter{})
	if err != nil {
		l.Logger.Warn("strays not looked at", "error", err)
		return
	}
	for _, snap := range inv.StraySnapshots(rows) {
		r.Strays = append(r.Strays, "snapshot "+snap.GetId())
	}
	for _, t := range inv.StrayTemplates(rows) {
		r.Strays = append(r.Strays, "template "+t.GetName())
	}
}
