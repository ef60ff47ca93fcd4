package main

import (
	"context"

	"github.com/roosthq/roost/bench/harness"
)

// servers are the installations of a run, one a runtime, each started when a figure needs it.
type servers struct {
	o    options
	by   map[string]*server
	shop *workshop
}

// measure gives a figure's results.
type measure func(ctx context.Context, pairs int) ([]harness.Result, error)

func (all *servers) on(ctx context.Context, runtime string) (*server, error) {
	if s := all.by[runtime]; s != nil {
		return s, nil
	}
	s, err := startServer(ctx, all.o, runtime)
	if err != nil {
		return nil, err
	}
	all.by[runtime] = s
	return s, nil
}

// with measures on the installation of a runtime.
func (all *servers) with(runtime string, f func(s *server) measure) measure {
	return func(ctx context.Context, pairs int) ([]harness.Result, error) {
		s, err := all.on(ctx, runtime)
		if err != nil {
			return nil, err
		}
		return f(s)(ctx, pairs)
	}
}

// both measures on the installations of gVisor and QEMU.
func (all *servers) both(f func(gvisor, qemu *server) measure) measure {
	return all.with(onGVisor, func(gvisor *server) measure {
		return all.with(onQEMU, func(qemu *server) measure { return f(gvisor, qemu) })
	})
}

// workshop is made by the first figure that needs it.
func (all *servers) workshop(ctx context.Context) (*workshop, error) {
	if all.shop != nil {
		return all.shop, nil
	}
	s, err := all.on(ctx, onGVisor)
	if err != nil {
		return nil, err
	}
	all.shop, err = s.openWorkshop(ctx)
	return all.shop, err
}

func (all *servers) remove() {
	if all.shop != nil {
		all.shop.close(context.Background())
	}
	for _, s := range all.by {
		s.remove()
	}
}
