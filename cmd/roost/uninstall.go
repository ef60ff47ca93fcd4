package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime/gvisor"
	"github.com/roosthq/roost/internal/host/sandbox"
)

func uninstallCommand() *cobra.Command {
	var opts upOptions
	var yes, keepImages bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove an installation from this machine: sandboxes, network and data",
		Long: `Remove an installation from this machine: every sandbox, running or paused, with its state, all
namespaces, links and rules, and the data directory. Stop ` + "`roost up`" + ` first. Packages, the roost
binary and the download cache stay.`,
		Example: "  roost uninstall --yes",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return fault.New(fault.Invalid, "uninstall", opts.data, "this deletes every sandbox and cannot be undone").
					WithHint("give --yes if that is what you want")
			}
			return uninstall(cmd.Context(), opts, keepImages)
		},
	}
	cmd.Flags().StringVar(&opts.data, "data", dataDir(), "the installation's data directory (ROOST_DATA)")
	cmd.Flags().BoolVar(&yes, "yes", false, "really do it")
	cmd.Flags().BoolVar(&keepImages, "keep-images", false, "keep templates, remove everything else")
	return cmd
}

// uninstall takes the installation's lock, so that no agent is running, and takes down
// everything that carries the installation's name.
func uninstall(ctx context.Context, opts upOptions, keepImages bool) error {
	var err error
	if opts.data, err = realData(opts.data); err != nil {
		return err
	}
	if _, err := os.Stat(opts.data); err != nil {
		return fault.New(fault.NotFound, "uninstall", opts.data, "there is no installation")
	}
	opts.pool, opts.accel, opts.runtime = -1, "tcg", runtimeAuto
	h := &hostSide{}
	defer h.Stop()
	if err := h.assemble(ctx, opts, quietLog(), nil); err != nil {
		return err
	}
	if err := h.network.Start(ctx); err != nil {
		return err
	}
	if err := h.sandboxes.Start(ctx); err != nil {
		return err
	}
	var errs []error
	for _, s := range h.sandboxes.List() {
		errs = append(errs, h.sandboxes.Destroy(ctx, sandbox.Operation{}, s.ID))
	}
	h.sandboxes.Stop()
	errs = append(errs, h.network.Uninstall(ctx), gvisor.RemoveCgroups(cgroupParent(h.installation)), removeDevices(ctx, h.installation.ID))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return errors.Join(removeData(paths.Data(opts.data), keepImages), h.installation.Forget())
}

func removeData(data paths.Data, keepImages bool) error {
	if !keepImages {
		return fault.Wrap(os.RemoveAll(string(data)), "remove", "data directory")
	}
	entries, err := os.ReadDir(string(data))
	if err != nil {
		return fault.Wrap(err, "read", "data directory")
	}
	var errs []error
	for _, e := range entries {
		if path := fmt.Sprintf("%s/%s", data, e.Name()); path != data.Images() {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
