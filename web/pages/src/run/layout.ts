// Where tasks and groups go: dagre's layered layout, which keeps groups together. Pure.

import { Graph as Layered, layout } from "@dagrejs/dagre"
import type { Structure } from "../server.js"

export const NODE = { width: 190, height: 62 }
const GROUP_TITLE = 26
const GAP = 22
const RANK_GAP = 46

export interface Box {
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

/** Return where everything goes, by id; `down` has the order go from top to bottom. */
export function placesOf(structure: Structure, down: boolean): ReadonlyMap<string, Box> {
  const graph = new Layered({ compound: true })
  // What is above each other leaves room for a title between; around a group is as much as between edges.
  const title = structure.groups.length === 0 ? 0 : GROUP_TITLE
  const across = { nodesep: GAP + (down ? 0 : title), edgesep: Math.max(GAP, title) }
  const ranksep = RANK_GAP + (down ? title : 0)
  graph.setGraph({ rankdir: down ? "TB" : "LR", ...across, ranksep, marginx: 8, marginy: 8 + GROUP_TITLE })
  graph.setDefaultEdgeLabel(() => ({}))
  for (const group of structure.groups) graph.setNode(groupKey(group.group_id), {})
  for (const group of structure.groups) {
    if (group.parent_id !== null) graph.setParent(groupKey(group.group_id), groupKey(group.parent_id))
  }
  for (const node of structure.nodes) {
    graph.setNode(node.task_id, { ...NODE })
    if (node.group_id !== null) graph.setParent(node.task_id, groupKey(node.group_id))
  }
  for (const { source, target } of structure.edges) graph.setEdge(source, target)
  layout(graph)
  return new Map(graph.nodes().map((id) => [id, boxOf(graph.node(id), id.startsWith(GROUP))]))
}

const GROUP = "group:"

/** Return the id of a group among those of tasks, which may have the same name. */
export function groupKey(groupId: string): string {
  return `${GROUP}${groupId}`
}

function boxOf({ x = 0, y = 0, width = 0, height = 0 }: Partial<Box>, isGroup: boolean): Box {
  const title = isGroup ? GROUP_TITLE : 0
  return { x: x - width / 2, y: y - height / 2 - title, width, height: height + title }
}
