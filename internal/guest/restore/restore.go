package restore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	pb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/identity"
)

// Restore begins a life, or repeats the answer of the current one.
func (s *Service) Restore(ctx context.Context, req *connect.Request[pb.RestoreRequest]) (*connect.Response[pb.RestoreResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repeat, err := s.repeats(req.Msg)
	if err != nil {
		return nil, err
	}
	if !repeat {
		if err := s.authorize(req.Header()); err != nil {
			return nil, err
		}
		if err := s.begin(ctx, req.Msg); err != nil {
			return nil, err
		}
	} else if s.waiting {
		// Whoever repeats it was answered too slowly for the clock to be right.
		if err := s.setClock(time.Unix(0, req.Msg.GetWallClockNs())); err != nil {
			return nil, err
		}
	}
	answer, err := s.facts()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

// repeats says that the request is for the current life, or why it cannot be served.
func (s *Service) repeats(r *pb.RestoreRequest) (bool, error) {
	if err := s.check(r); err != nil {
		return false, err
	}
	life, restored := s.Identity.Current()
	if !restored || life.SandboxID != r.GetSandboxId() || r.GetGeneration() > life.Generation {
		return false, nil
	}
	object := r.GetSandboxId() + " generation " + strconv.FormatUint(r.GetGeneration(), 10)
	if r.GetGeneration() < life.Generation {
		return false, fault.New(fault.FailedPrecondition, "restore", object, "a later generation runs")
	}
	if life.AccessToken != r.GetAccessToken() || !s.Identity.Control(r.GetControlToken()) {
		return false, fault.New(fault.FailedPrecondition, "restore", object, "it was restored with other tokens")
	}
	return true, nil
}

func (s *Service) begin(ctx context.Context, r *pb.RestoreRequest) error {
	s.Identity.Revoke()
	if err := s.freeze(ctx); err != nil {
		return err
	}
	s.Tree.Abort()
	s.DropOthers(ctx)
	for _, step := range []func() error{
		func() error { return s.setClock(time.Unix(0, r.GetWallClockNs())) },
		func() error { return s.reseed(r.GetEntropy()) },
		func() error { return s.rename(r) },
		func() error { return s.writeMarkers(r) },
		func() error { return s.renewHostKeys(ctx) },
		func() error { return s.growIf(r.GetGrow()) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	s.Identity.Begin(identity.Life{
		SandboxID: r.GetSandboxId(), Generation: r.GetGeneration(), AccessToken: r.GetAccessToken(),
		Envs: maps.Clone(r.GetEnvs()), DefaultUser: r.GetDefaultUser(),
	}, r.GetControlToken())
	s.waiting = true
	s.Activity.Touch()
	return nil
}

func (s *Service) setClock(to time.Time) (err error) {
	s.stepped, err = s.System.SetClock(to)
	return err
}

func (s *Service) reseed(entropy []byte) error {
	s.reseeded = false
	if err := s.System.AddEntropy(entropy); err != nil {
		return err
	}
	s.reseeded = true
	return nil
}

func (s *Service) rename(r *pb.RestoreRequest) error {
	if err := s.System.SetHostname(r.GetHostname()); err != nil {
		return err
	}
	if err := identity.WriteHostname(s.Root, r.GetHostname()); err != nil {
		return err
	}
	return identity.WriteFile(filepath.Join(s.Root, "etc/machine-id"), []byte(r.GetMachineId()+"\n"), 0o444)
}

// writeMarkers tells programs in the sandbox which life this is; the boot marker is new in
// each, as boot_id would be after a boot.
func (s *Service) writeMarkers(r *pb.RestoreRequest) error {
	marker := make([]byte, 16)
	_, _ = rand.Read(marker) // never fails; drawn after the reseed
	for name, value := range map[string]string{
		"boot-marker": hex.EncodeToString(marker),
		"generation":  strconv.FormatUint(r.GetGeneration(), 10),
		"sandbox-id":  r.GetSandboxId(),
	} {
		if err := identity.WriteFile(s.run(name), []byte(value+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) growIf(asked bool) error {
	if !asked {
		return nil
	}
	return s.System.Grow(s.Root, s.Device)
}

// facts measures what the last Restore made true.
func (s *Service) facts() (*pb.RestoreResponse, error) {
	host, err := s.System.Hostname()
	if err != nil {
		return nil, fault.Wrap(err, "read", "host name")
	}
	machine, err := readLine(filepath.Join(s.Root, "etc/machine-id"))
	if err != nil {
		return nil, err
	}
	marker, err := readLine(s.run("boot-marker"))
	if err != nil {
		return nil, err
	}
	total, _, err := diskUse(s.Root)
	if err != nil {
		return nil, err
	}
	life, restored := s.Identity.Current()
	return &pb.RestoreResponse{
		ClockSteppedNs: int64(s.stepped), RandomReseeded: s.reseeded, Hostname: host, MachineId: machine,
		Generation: life.Generation, BootId: marker, TokenRenewed: restored, RootBytes: int64(total),
		GuestVersion: s.Version, ClockNs: s.System.Now().UnixNano(),
	}, nil
}

func (s *Service) run(name string) string { return filepath.Join(s.Root, "run/roost", name) }

func readLine(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), fault.Wrap(err, "read", path)
}
