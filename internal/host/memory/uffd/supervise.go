package uffd

import (
	"context"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/process"
)

// maxUseless is how many servers in a row may die before they serve. One that is killed by
// somebody gets there the next time; one that cannot, never does.
const maxUseless = 20

// Supervise watches a VM's pager until the VM is gone or ctx ends, and attaches another whenever one
// dies: it takes about as long as starting a process. replaced is told of each, for the journal. It
// returns nil when the VM is gone or ctx has ended. Otherwise the VM cannot go on and kill was called with
// the reason, which it returns too: fault.DataLoss when what the VM needs is damaged.
func Supervise(ctx context.Context, p *Pager, o StartOptions, vmm VMM, replaced func(*Pager), kill func(error)) error {
	err := supervise(ctx, p, o, vmm, replaced)
	if err != nil {
		kill(err)
	}
	return err
}

func supervise(ctx context.Context, p *Pager, o StartOptions, vmm VMM, replaced func(*Pager)) error {
	lives, useless := uint64(0), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.Exited():
		}
		err := p.Err()
		if err == nil || !fault.Is(err, fault.Unavailable) {
			return err
		}
		if now := o.lives(); now > lives {
			lives, useless = now, 0
		} else if useless++; useless > maxUseless {
			return err
		}
		next, err := Reattach(ctx, o, vmm)
		if err != nil && (ctx.Err() != nil || vmm.gone()) {
			err = nil
			next = nil
		}
		if next == nil {
			return err
		}
		p = next
		replaced(next)
	}
}

func (v VMM) gone() bool {
	proc, err := process.Open(v.PID, v.StartTime)
	if err == nil {
		proc.Release()
	}
	return fault.Is(err, fault.NotFound)
}
