package cli

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Sandboxes kept as they were, to start others from",
		Long: `A snapshot is what a sandbox was at one moment: memory, processes and disk. It never changes, needs
its source no longer, and starts any number of sandboxes, each with an identity of its own.`,
		Example: `  roost snapshot create $id --name ready
  roost create ready
  roost snapshot tree
  roost snapshot rm ready`,
	}
	cmd.AddCommand(a.snapshotCreateCommand(), a.snapshotLsCommand(), a.snapshotInfoCommand(), a.snapshotTreeCommand(), a.snapshotRmCommand())
	return group(cmd)
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "create ID",
		Short: "Snapshot a sandbox and print the snapshot's name",
		Long: `Snapshot a running or paused sandbox and print the snapshot's name. A running one stands still for a
moment, which is shown on a terminal, and runs on. One that was paused with --disk-only gives a snapshot
without memory: what starts from it boots.`,
		Example: `  roost snapshot create $id --name ready
  roost create $(roost snapshot create $id)
  roost snapshot create $id --json | jq '{name, frozen_ms, size_bytes}'`,
		Args: takes("ID"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("name") {
			if err := checkName(name); err != nil {
				return usage(cmd, "%s", err.Error())
			}
		}
		return a.onSandbox(func(ctx context.Context, c *client, id string) error {
			return a.createSnapshot(ctx, c, v1.CreateSnapshot{SandboxId: id, Name: nonEmpty(name)})
		})(cmd, args)
	}
	cmd.Flags().StringVar(&name, "name", "", "the snapshot's name (default: its id)")
	return cmd
}

func (a *app) createSnapshot(ctx context.Context, c *client, body v1.CreateSnapshot) error {
	progress := startBusy(a.json, "taking a snapshot of "+body.SandboxId)
	made, err := answer[v1.Template](c.api.CreateSnapshotWithResponse(ctx, body))
	progress.stop()
	if err != nil {
		return err
	}
	if a.json {
		return printJSON(os.Stdout, made)
	}
	a.remark("snapshot %s, %s; %s", made.Name, size(made.SizeBytes), stood(body.SandboxId, made.FrozenMs))
	_, err = fmt.Fprintln(os.Stdout, made.Name)
	return err
}

// stood says how long a sandbox was frozen.
func stood(id string, ms *float64) string {
	if ms == nil || *ms == 0 {
		return id + " was paused"
	}
	return id + " was frozen for " + duration(*ms)
}

func (a *app) snapshotLsCommand() *cobra.Command {
	var of string
	var names bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List snapshots, newest first",
		Long: `List snapshots, newest first. FROM is the sandbox that each was taken of, TEMPLATE what that one came
from. SIZE is the real use of all it needs but its template; snapshots, forks and sandboxes share files,
so sizes do not add up. OWN is what only this one needs and a delete gives back. CHILDREN are the sandboxes
that were made from it, forks of those, and the snapshots that were taken of them. Only a ready one starts sandboxes; of a lost one the host has nothing any more.`,
		Example: `  roost snapshot ls
  roost snapshot ls --sandbox $id
  roost snapshot rm $(roost snapshot ls -q --sandbox $id)`,
		Args: takes(),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("sandbox") {
			if err := checkID(of); err != nil {
				return usage(cmd, "%s", err.Error())
			}
		}
		return a.run(func(ctx context.Context, c *client, _ []string) error {
			return a.listSnapshots(ctx, c, of, names)
		})(cmd, args)
	}
	cmd.Flags().StringVar(&of, "sandbox", "", "only those that were taken of this sandbox")
	cmd.Flags().BoolVarP(&names, "quiet", "q", false, "only names")
	return cmd
}

func (a *app) listSnapshots(ctx context.Context, c *client, of string, names bool) error {
	progress := startBusy(a.json, "listing snapshots")
	snapshots, err := c.snapshots(ctx, of)
	progress.stop()
	switch {
	case err != nil:
		return err
	case a.json:
		return printJSON(os.Stdout, v1.TemplateList{Templates: snapshots})
	case names:
		for _, s := range snapshots {
			_, _ = fmt.Fprintln(os.Stdout, printable(s.Name))
		}
		return nil
	default:
		return snapshotTable(snapshots)
	}
}

// snapshots lists those of a sandbox, or all. The answer is never nil, so that JSON shows [].
func (c *client) snapshots(ctx context.Context, of string) ([]v1.Template, error) {
	list, err := answer[v1.TemplateList](c.api.ListSnapshotsWithResponse(ctx, &v1.ListSnapshotsParams{SandboxId: nonEmpty(of)}))
	return append([]v1.Template{}, list.Templates...), err
}

func snapshotTable(snapshots []v1.Template) error {
	t := newTable(os.Stdout, "NAME", "FROM", "TEMPLATE", "RUNTIME", "SIZE", "OWN", "CHILDREN", "AGE", "STATE")
	for _, s := range snapshots {
		t.row(s.Name, orDash(s.SourceSandboxId), orDash(s.Parent), orDash(s.Runtime),
			size(s.SizeBytes), ownSize(s), children(s), madeAge(s), stateOf(s))
	}
	return t.flush()
}

func (a *app) snapshotInfoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info NAME",
		Short: "Show everything about a snapshot",
		Example: `  roost snapshot info ready
  roost snapshot info ready --json | jq .own_bytes`,
		Args: takes("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkName(args[0]); err != nil {
				return usage(cmd, "%s", err.Error())
			}
			return nameObject(args[0], a.run(a.showSnapshot)(cmd, args))
		},
	}
}

func (a *app) showSnapshot(ctx context.Context, c *client, args []string) error {
	s, err := onSnapshots.get(ctx, c, args[0])
	switch {
	case err != nil:
		return err
	case a.json:
		return printJSON(os.Stdout, s)
	default:
		return snapshotInfo(s)
	}
}

func snapshotInfo(s v1.Template) error {
	t := newTable(os.Stdout, "Name", s.Name)
	t.row("ID", s.Id)
	t.row("State", stateOf(s))
	t.row("From", orDash(s.SourceSandboxId))
	t.row("Template", orDash(s.Parent))
	t.row("Isolation", orDash(s.Isolation))
	t.row("Runtime", orDash(s.Runtime))
	t.row("vCPUs", orUnknown(s.Vcpus, strconv.Itoa))
	t.row("Memory", orUnknown(s.MemoryMb, mib))
	t.row("Disk", orUnknown(s.DiskSizeMb, mib))
	t.row("Holds", holds(s))
	t.row("Size", size(s.SizeBytes))
	t.row("Own", ownSize(s))
	t.row("Children", children(s))
	t.row("Created", moment(s.CreatedAt))
	t.row("Frozen", orUnknown(s.FrozenMs, duration))
	t.row("Digest", s.Digest)
	t.row("Phases", joinPhases(s.Phases))
	return t.flush()
}

func holds(s v1.Template) string {
	if s.DiskOnly != nil && *s.DiskOnly {
		return "disk"
	}
	return "memory and disk"
}

func (a *app) snapshotRmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm NAME...",
		Short: "Delete snapshots",
		Long: `Delete snapshots. Deleting one again is a success. What came from it goes on: the files that it needs
stay until the last that needs them ends. Those are named on stderr.`,
		Example: `  roost snapshot rm ready
  roost snapshot rm $(roost snapshot ls -q)`,
		Args: takes("NAME…"),
		RunE: a.removeNamed(onSnapshots),
	}
}
