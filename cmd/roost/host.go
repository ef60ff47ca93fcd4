package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/images"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/agent"
	"github.com/roosthq/roost/internal/host/doctor"
	"github.com/roosthq/roost/internal/host/guestbin"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/installation"
	"github.com/roosthq/roost/internal/host/network"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/sandbox"
	"github.com/roosthq/roost/internal/lifecycle"
)

// baseTemplate is the template that every installation has.
const baseTemplate = "base"

// hostSide is the agent's half of `roost up`.
type hostSide struct {
	installation *installation.Installation
	network      *network.Manager
	sandboxes    *sandbox.Manager
	agent        *agent.Server
	runtimes     runtimes
}

// startHost brings one machine up: images, runtime, network, then the sandboxes that were
// there, and at last the RPC.
func startHost(ctx context.Context, opts upOptions, log *slog.Logger, tell teller) (*hostSide, error) {
	h := &hostSide{}
	err := h.assemble(ctx, opts, log, tell.progress)
	if err == nil {
		err = h.start(ctx, tell)
	}
	if err != nil {
		h.Stop()
		return nil, err
	}
	return h, nil
}

// assemble makes the parts; none of them runs yet. Without report the base template must be
// there already, or nothing can start.
func (h *hostSide) assemble(ctx context.Context, opts upOptions, log *slog.Logger, report func(image.Progress)) (err error) {
	data := paths.Data(opts.data)
	if h.installation, err = installation.Open(data); err != nil {
		return err
	}
	store, err := image.Open(data.Images(), log)
	if err != nil {
		return err
	}
	kernel, kernelELF := "", func() (string, error) { return "", nil }
	if report != nil {
		template, err := ensureBase(ctx, store, opts, report)
		if err != nil {
			return err
		}
		kernel = template.KernelPath()
		kernelELF = func() (string, error) {
			with, err := store.WithKernelELF(template)
			return with.KernelELFPath(), err
		}
	}
	guest, err := guestFile(data)
	if err != nil {
		return err
	}
	h.runtimes, err = openRuntimes(ctx, site{opts: opts, installation: h.installation, kernel: kernel, kernelELF: kernelELF, guest: guest, leaving: report == nil, log: log})
	if err != nil {
		return err
	}
	if h.network, err = network.New(network.Options{
		Installation: h.installation.ID, StateDir: opts.data, PoolSize: opts.pool, Logger: log,
		Resolvers: opts.resolvers, Subnet: opts.subnet, PoolPort: h.runtimes.port(),
	}); err != nil {
		return err
	}
	working, absent := h.runtimes.working()
	h.sandboxes = sandbox.New(sandbox.Config{
		Data: data, Runtimes: working, Absent: absent, Network: h.network, Images: store, UIDs: h.installation.UIDs,
		GuestPath: guest, GuestDigest: guestbin.Digest(), Logger: log,
	})
	h.agent = agent.NewServer(agent.Config{
		Socket: data.AgentSocket(), Sandboxes: h.sandboxes, Images: store, Host: h.describe(opts.data), Logger: log,
	})
	return nil
}

// describe is what the host says of itself.
func (h *hostSide) describe(data string) agent.HostInfo {
	s := doctor.System{Data: data, Serving: true}
	checks := append(h.runtimes.checks(), deviceMapper(h.installation.ID, paths.Data(data).Cache))
	checks = append(append(checks, doctor.Host(s)...), doctor.Production(s)...)
	return agent.HostInfo{Version: version, Data: data, Runtimes: h.runtimes.describe(), Checks: checks}
}

func (h *hostSide) start(ctx context.Context, tell teller) error {
	if err := lifecycle.StartAll(ctx, h.network, h.sandboxes); err != nil {
		return err
	}
	size := runtime.Resources{VCPUs: sandbox.DefaultVCPUs, MemoryMB: sandbox.DefaultMemoryMB, DiskSizeMB: sandbox.DefaultDiskSizeMB}
	if err := tell.step("keep memory of template "+baseTemplate, func() error {
		return h.sandboxes.Warm(ctx, baseTemplate, size)
	}); err != nil {
		return err
	}
	return h.agent.Start(ctx)
}

// Stop lets go of everything; sandboxes run on.
func (h *hostSide) Stop() {
	if h.agent != nil {
		h.agent.Stop()
	}
	if h.sandboxes != nil {
		h.sandboxes.Stop()
	}
	if h.network != nil {
		h.network.Stop()
	}
	if h.installation != nil {
		_ = h.installation.Close()
	}
}

// ensureBase builds the base template when it is missing or its recipe has changed.
func ensureBase(ctx context.Context, store *image.Store, opts upOptions, report func(image.Progress)) (image.Template, error) {
	recipe, err := images.Recipe(baseTemplate)
	if err != nil {
		return image.Template{}, err
	}
	return store.Ensure(ctx, recipe, image.BuildOptions{CacheDir: opts.cache, Report: report})
}

// guestFile puts the embedded guest agent where the image builder can read it, in a directory of
// its own that gVisor's uid may enter.
func guestFile(data paths.Data) (string, error) {
	binary, err := guestbin.Binary()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(data.Cache(), "guest-"+guestbin.Digest()[:16])
	path := filepath.Join(dir, "roost-guest")
	// The name is the content's; the size tells a file that a crash of the host left empty.
	if st, err := os.Stat(path); err == nil && st.Size() == int64(len(binary)) {
		return path, nil
	}
	err = errors.Join(os.MkdirAll(data.Cache(), 0o700), os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755))
	if err == nil {
		err = errors.Join(os.WriteFile(path+".tmp", binary, 0o755), os.Chmod(path+".tmp", 0o755)) // whatever the umask is
	}
	if err != nil {
		return "", fault.Wrap(err, "write", "roost-guest")
	}
	return path, fault.Wrap(os.Rename(path+".tmp", path), "publish", "roost-guest")
}
