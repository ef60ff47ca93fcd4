package template

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"reflect"
	"strings"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

// Sync takes the host's own templates into the table: new ones come, changed ones change,
// and those that it has no more go.
func (s *Service) Sync(ctx context.Context) error {
	// Rows before the host's list: what comes in between is in the list.
	rows, err := s.store.Templates(ctx, store.TemplateFilter{Type: Base})
	if err != nil {
		return err
	}
	list, err := s.hostTemplates(ctx)
	if err != nil {
		return err
	}
	return s.SyncWith(ctx, rows, list)
}

// SyncWith is Sync with rows, and what the host answered after they were read.
func (s *Service) SyncWith(ctx context.Context, rows []*Template, list map[string]*hostv1.Template) error {
	known := make(map[string]bool, len(rows))
	var swaps []store.TemplateSwap
	for _, row := range rows {
		known[row.Name] = true // also of a snapshot: the name is taken
		if !row.BuiltByHost {
			continue
		}
		t := list[row.Name]
		if t == nil || !t.GetBuiltByHost() {
			swaps = append(swaps, store.TemplateSwap{Seen: row})
			continue
		}
		next := row.Copy()
		takeTemplate(next, t)
		if !reflect.DeepEqual(row, next) {
			swaps = append(swaps, store.TemplateSwap{Seen: row, Next: next})
		}
	}
	err := s.swap(ctx, swaps)
	for _, t := range list {
		if t.GetBuiltByHost() && !known[t.GetName()] {
			err = errors.Join(err, s.adopt(ctx, t))
		}
	}
	return err
}

func (s *Service) swap(ctx context.Context, swaps []store.TemplateSwap) error {
	if len(swaps) == 0 {
		return nil
	}
	_, err := s.store.SwapTemplates(ctx, swaps)
	return err
}

// adopt makes the row of a template that the host has built. Another control plane may have
// been faster, and a name that a user took first stays the user's.
func (s *Service) adopt(ctx context.Context, t *hostv1.Template) error {
	row := &Template{ID: builtID(t.GetName()), Name: t.GetName(), Type: Base, State: store.TemplateReady,
		HostID: host.LocalID, BuiltByHost: true, Version: 1, CreatedAt: store.At(s.now())}
	if t.GetCreatedAt().IsValid() {
		row.CreatedAt = store.At(t.GetCreatedAt().AsTime())
	}
	takeTemplate(row, t)
	if err := s.store.AddTemplate(ctx, row); !fault.Is(err, fault.AlreadyExists) {
		return err
	}
	return nil
}

// builtID is the same each time, so that sandboxes keep their template when the host was
// without it for a while.
func builtID(name string) string {
	sum := sha256.Sum256([]byte(host.LocalID + "/" + name))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:20]
}

// takeTemplate takes what the host knows of a base.
func takeTemplate(row *Template, t *hostv1.Template) {
	row.Digest, row.SizeBytes, row.DiskBytes = t.GetDigest(), t.GetSizeBytes(), t.GetDiskBytes()
	row.Warm = make([]store.Size, len(t.GetWarm()))
	for i, w := range t.GetWarm() {
		row.Warm[i] = store.Size{VCPUs: int(w.GetVcpus()), MemoryMB: int(w.GetMemoryMb())}
	}
}
