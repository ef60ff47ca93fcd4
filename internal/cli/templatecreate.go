package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) templateCreateCommand() *cobra.Command {
	var from string
	var diskOnly bool
	cmd := &cobra.Command{
		Use:   "create NAME --from ID|SNAPSHOT",
		Short: "Make a template of a sandbox or a snapshot",
		Long: `Make a template of the files of a sandbox (running or paused, it goes on) or a snapshot, and print its
name. The files become a new root disk as small as they allow, for every size and runtime: what was
deleted takes no space in it.

Unless --disk-only is given the memory is kept too: a sandbox of the same sizes and runtime, which are the
default, starts with the processes that ran; another one boots.`,
		Example: `  roost template create django --from $id
  roost template create django --from ready --disk-only
  roost create django --memory-mb 2048`,
		Args: takes("NAME"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if from == "" {
			return usage(cmd, "--from is missing: a sandbox's id, or a snapshot's name")
		}
		if err := checkAll([]string{args[0], from}, checkName); err != nil {
			return usage(cmd, "%s", err.Error())
		}
		body := v1.CreateTemplate{Name: args[0], From: from, DiskOnly: given(cmd, "disk-only", diskOnly)}
		return nameObject(args[0], a.run(func(ctx context.Context, c *client, _ []string) error {
			return a.createTemplate(ctx, c, body)
		})(cmd, args))
	}
	cmd.Flags().StringVar(&from, "from", "", "a sandbox's id, or a snapshot's name or id")
	cmd.Flags().BoolVar(&diskOnly, "disk-only", false, "the files alone, without memory and processes")
	return cmd
}

// createdTemplate is the stream of a template's making.
var createdTemplate = making[v1.Template]{
	what: "the template",
	look: "`roost template ls` shows whether it was made",
	take: func(e madeEvent) *v1.Template { return e.Template },
}

func (a *app) createTemplate(ctx context.Context, c *client, body v1.CreateTemplate) error {
	progress := startBusy(a.json, "making template "+body.Name)
	//nolint:bodyclose // made closes it.
	made, err := createdTemplate.made(c.api.CreateTemplate(ctx, body, acceptStream))(progress)
	progress.stop()
	if err != nil {
		return err
	}
	if a.json {
		return printJSON(os.Stdout, made)
	}
	a.remark("template %s, %s; %s", made.Name, size(made.SizeBytes), startsWith(made))
	_, err = fmt.Fprintln(os.Stdout, made.Name)
	return err
}

// startsWith says what a sandbox of the template starts with.
func startsWith(m v1.Template) string {
	if m.MemoryMb == nil || m.Vcpus == nil || m.DiskOnly != nil && *m.DiskOnly {
		return "sandboxes of it boot, once for each size"
	}
	return fmt.Sprintf("sandboxes of %s and %s in %s start with what ran", count(*m.Vcpus, "vCPU", "vCPUs"), mib(*m.MemoryMb), orDash(m.Runtime))
}
