package dm

import (
	"context"
	"errors"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

var errNoName = fault.New(fault.Invalid, "use", "device", "it has no name")

// Make makes a device with a live table: create, load and resume. When it fails there is no
// device, whatever became of ctx; a device of that name that was there before is left alone
// (fault.AlreadyExists).
func (c *Control) Make(ctx context.Context, name, uuid string, table []Target, readOnly bool) (Info, error) {
	var back undo.Stack
	info, err := c.Create(ctx, name, uuid)
	if err != nil {
		return Info{}, err
	}
	back.Push("create device "+name, func(ctx context.Context) error { return c.Remove(ctx, name) })
	if err = c.Load(ctx, name, table, readOnly); err == nil {
		info, err = c.Resume(name)
	}
	if err != nil {
		return Info{}, errors.Join(err, back.Rollback(ctx))
	}
	return info, nil
}
