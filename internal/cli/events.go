package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croftproject/croft/api"
	"github.com/croftproject/croft/client"
)

func (a *app) eventCommand() *cobra.Command {
	var follow, all bool
	var name, kind, reason string
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what happened, and why", Args: exactly(), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			tenant := a.tenant
			if all {
				tenant = ""
			}
			o := client.ListOptions{Filter: map[string]string{}}
			for field, value := range map[string]string{"name": name, "kind": kind, "reason": reason} {
				if value != "" {
					o.Filter[field] = value
				}
			}
			return a.listEvents(cmd, c.Events(tenant), o, follow)
		},
	}
	list.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on")
	list.Flags().BoolVarP(&all, "all-tenants", "A", false, "of all tenants (operator)")
	list.Flags().StringVar(&name, "name", "", "only those of the resource with this name")
	list.Flags().StringVar(&kind, "kind", "", "only those of this kind of resource")
	list.Flags().StringVar(&reason, "reason", "", "only those with this reason, as Exited")
	complete(list, "kind", "server", "network", "image", "host", "tenant")
	return noun("event", "What happened, and why", []string{"events"}, list)
}

func (a *app) listEvents(cmd *cobra.Command, r *client.Resource[api.Event, struct{}], o client.ListOptions, follow bool) error {
	var events []api.Event
	revision := int64(0)
	for o.Limit = 1000; ; {
		page, err := r.Page(cmd.Context(), o)
		if err != nil {
			return err
		}
		events = append(events, page.Items...)
		if revision == 0 {
			revision = page.AtRev
		}
		if o.Cursor = page.Next; o.Cursor == "" {
			break
		}
	}
	slices.SortStableFunc(events, func(a, b api.Event) int { return a.Time.Compare(b.Time) })
	out := cmd.OutOrStdout()
	if a.output != "table" && !follow {
		if events == nil {
			events = []api.Event{}
		}
		return a.print(out, events)
	}
	if a.output == "table" && len(events) == 0 && !follow {
		fmt.Fprintln(cmd.ErrOrStderr(), "there are no events")
		return nil
	}
	if err := a.printEvents(cmd, events); err != nil || !follow {
		return err
	}
	o.Limit = 0
	for change, err := range r.Watch(cmd.Context(), o, revision) {
		if cmd.Context().Err() != nil {
			return nil // the user has seen enough
		}
		if err != nil {
			return err
		}
		if change.Type == api.ChangePut {
			if err := a.printEvents(cmd, []api.Event{change.Object}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *app) printEvents(cmd *cobra.Command, events []api.Event) error {
	if a.output != "table" {
		for _, e := range events {
			if err := a.print(cmd.OutOrStdout(), e); err != nil {
				return err
			}
		}
		return nil
	}
	st := styleOf(cmd.OutOrStdout())
	var t table
	for _, e := range events {
		reason := e.Reason
		if e.Warning {
			reason = st.paint(yellow, reason)
		}
		t.add(e.Time.Local().Format(time.DateTime), e.Kind+"/"+e.Name, reason, e.Message, st.paint(dim, e.Actor))
	}
	t.write(cmd.OutOrStdout())
	return nil
}

func (a *app) jobCommand() *cobra.Command {
	k := &kind[api.Job, api.JobSpec]{
		app: a, singular: "job", plural: "jobs", resources: (*client.Client).Jobs,
		meta:   func(j *api.Job) *api.Meta { return &j.Meta },
		header: []string{"NAME", "KIND", "OBJECT", "PHASE", "PROGRESS", "AGE"},
		row: func(st style, j *api.Job) []string {
			return []string{j.Name, j.Spec.Kind, j.Spec.Object, st.phase(string(j.Status.Phase)), jobProgress(j), age(j.Created)}
		},
		show: func(st style, p *pairs, j *api.Job) {
			p.put("Kind", j.Spec.Kind)
			p.put("Object", j.Spec.Object)
			p.put("Source", j.Spec.Source)
			p.put("Phase", st.phase(string(j.Status.Phase)))
			p.put("Progress", jobProgress(j))
			p.put("Error", j.Status.Error)
			if !j.Status.Finished.IsZero() {
				p.put("Took", j.Status.Finished.Sub(j.Created).Round(10*time.Millisecond).String())
			}
		},
		filters: []string{"phase"},
	}
	wait := &cobra.Command{
		Use: "wait NAME", Short: "Wait until a job has ended", Args: exactly("NAME"), ValidArgsFunction: k.names,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			job, err := c.Jobs(a.tenant).Get(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.followJob(cmd, job, a.progressLine(cmd, args[0]), "done")
		},
	}
	return noun("job", "Work done once", []string{"jobs"}, k.list(), k.showCommand(), wait, k.delete())
}

func jobProgress(j *api.Job) string {
	return strings.TrimSpace(fmt.Sprintf("%d%% %s", j.Status.Progress, j.Status.Step))
}
